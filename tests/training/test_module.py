"""Optimizer steps and their metrics: normalization, logging, evaluation, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_probsft.errors import UserError
from lit_probsft.model.generation import Generation
from lit_probsft.objectives import (
    ASFT,
    EAFT,
    GEM,
    NLL,
    PSFT,
    TALR,
    Cayley,
    LabelSmoothing,
    NegP,
    Objective,
    Power,
    Threshold,
    TokenStats,
)
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.members import ALL, CONTEXT, EntropyWeighted, Scheduled


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 20)


CUTS = [(4, 2), (2, 4), (1, 8)]


@pytest.mark.parametrize("normalize", ["tokens", "sequence", "kept"])
@pytest.mark.parametrize(
    ("dtype", "optimizer", "tolerance"), [(torch.float64, tiny.adamw, 1e-10), (torch.float32, tiny.sgd, 1e-6)]
)
def test_the_number_of_micro_batches_does_not_change_a_step(
    rows: Path, normalize: Any, dtype: torch.dtype, optimizer: Any, tolerance: float
) -> None:
    options = {"dtype": dtype, "optimizer": optimizer, "normalize": normalize, "objective": Threshold(NegP(), 0.003)}
    whole = tiny.weights(tiny.fit(rows, batch_size=8, accumulate=1, **options))
    for batch_size, accumulate in CUTS:
        tiny.assert_close(
            whole, tiny.weights(tiny.fit(rows, batch_size=batch_size, accumulate=accumulate, **options)), tolerance
        )


# The default suite tests one member for each way in which a loss gets its inputs.
FAST = [NLL(), NegP(), Power(0.5), LabelSmoothing(0.1), GEM(), EAFT(), Cayley(), Scheduled(), ASFT(), PSFT()]
FAST += [member for member in ALL if isinstance(member, Threshold | EntropyWeighted)]
SLOW = [member for member in ALL if member not in FAST]


@pytest.mark.parametrize(
    "objective", [pytest.param(m, marks=pytest.mark.slow) if m in SLOW else m for m in ALL], ids=repr
)
def test_the_number_of_micro_batches_does_not_change_a_step_of_any_objective(rows: Path, objective: Objective) -> None:
    one = tiny.weights(tiny.fit(rows, batch_size=8, accumulate=1, objective=objective))
    other = tiny.weights(tiny.fit(rows, batch_size=2, accumulate=4, objective=objective))
    tiny.assert_close(one, other, 1e-10)


@dataclass(frozen=True)
class Curious(NLL):
    """Needs an unknown field."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropie"})


def test_the_logged_rate_is_that_of_the_step(rows: Path) -> None:
    seen: list[float] = []

    class Watched(ProbSFTModule):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            seen.append(float(self.trainer.callback_metrics["lr"]))

    module = Watched(tiny.model(), NLL(), tiny.sgd, schedule=Schedule("linear", warmup=0))
    tiny.trainer().fit(module, datamodule=tiny.data(rows, batch_size=8))
    assert seen == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])


def test_validation_waits_for_the_end_of_an_optimizer_step(rows: Path, tmp_path: Path) -> None:
    from lit_probsft.data import ByteTokenizer, InstructionDataModule, Rows

    source = Rows(str(rows), prompt="question", response="answer")
    datamodule = InstructionDataModule(train=source, validation=source, tokenizer=ByteTokenizer(), batch_size=2)
    at: list[int] = []

    class Watched(ProbSFTModule):
        def on_validation_start(self) -> None:
            at.append(self.trainer.fit_loop.batch_idx + 1)

    module = Watched(tiny.model(), NLL(), tiny.sgd)
    tiny.trainer(accumulate_grad_batches=4, val_check_interval=3).fit(module, datamodule=datamodule)
    assert at
    assert all(batches % 4 == 0 for batches in at)


def test_metrics_are_summed_in_double_whatever_the_models_dtype(rows: Path) -> None:
    module = ProbSFTModule(tiny.source(), NLL(), optimizer=tiny.sgd)
    tiny.trainer(precision="bf16-true").fit(module, datamodule=tiny.data(rows, validation=tiny.rows(rows)))
    for means in (module.step_metrics, module.evaluation_metrics.sets[0].means):
        assert means.sums.dtype == torch.float64
        means.reset()
        assert means.sums.dtype == torch.float64


def test_logged_metrics_are_means_over_the_tokens_of_the_step(rows: Path) -> None:
    module = ProbSFTModule(tiny.model(torch.float64), NegP(), optimizer=tiny.sgd)
    datamodule = tiny.data(rows, batch_size=4, length_pool=0)
    run = tiny.trainer(max_steps=1, accumulate_grad_batches=2)
    before = tiny.model(torch.float64)
    run.fit(module, datamodule=datamodule)
    log_probs = []
    for batch in list(datamodule.train_dataloader())[:2]:
        logits = before(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        target = batch["labels"][:, 1:]
        log_probs.append(logits.gather(-1, target.clamp(min=0)[..., None])[..., 0][target != -100])
    p = torch.cat(log_probs).exp()
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["train/nll"] == pytest.approx(-p.log().mean().item(), rel=1e-6)
    assert logged["train/mean_p"] == pytest.approx(p.mean().item(), rel=1e-6)
    assert logged["train/loss"] == pytest.approx(1 - p.mean().item(), rel=1e-6)
    assert logged["train/inside"] == 1
    assert {"train/accuracy", "train/grad_norm", "train/skipped_steps", "lr"} <= logged.keys()


def test_validation_counts_every_token_once(rows: Path, tmp_path: Path) -> None:
    held_out = tiny.write_rows(tmp_path / "validation.jsonl", 7, seed=5)
    source = tiny.data(held_out).__class__  # the same class, other rows
    from lit_probsft.data import ByteTokenizer, Rows

    validation = Rows(str(held_out), prompt="question", response="answer")
    results = []
    for eval_batch_size in (1, 3, 7):
        datamodule = source(validation=validation, tokenizer=ByteTokenizer(), eval_batch_size=eval_batch_size)
        module = ProbSFTModule(tiny.model(torch.float64))
        (metrics,) = tiny.trainer().validate(module, datamodule=datamodule, verbose=False)
        results.append(metrics)
    assert results[0]["val/nll"] == pytest.approx(results[1]["val/nll"], rel=1e-10)
    assert results[0]["val/nll"] == pytest.approx(results[2]["val/nll"], rel=1e-10)


@pytest.mark.parametrize("objective", [*ALL, Threshold(EAFT(k=3))], ids=repr)
def test_the_head_is_asked_for_what_the_objective_reads(objective: Objective) -> None:
    module = ProbSFTModule("a/model", objective)
    if module.objective_state.missing:
        assert module.requested_loss().needs == frozenset()
        module.objective_state.set(CONTEXT["capability"])
    asked = module.requested_loss()
    assert (asked.needs, asked.top_k, asked.name) == (objective.needs, objective.top_k, type(objective).__name__)
    assert module.eval().requested_loss().needs == objective.needs | {"entropy"}


def test_an_objective_may_read_the_progress_of_training(rows: Path) -> None:
    seen: list[float] = []

    class Spy(ProbSFTModule):
        def token_loss(self, tokens: TokenStats) -> torch.Tensor:
            seen.append(tokens.progress)
            return super().token_loss(tokens)

    module = Spy(tiny.model(), Scheduled(), optimizer=tiny.sgd)
    tiny.trainer().fit(module, datamodule=tiny.data(rows, batch_size=8))
    assert seen == pytest.approx([0, 1 / 3, 2 / 3])


class Diary(ProbSFTModule):
    """Records a mean of each step, and its value that the objective read in the next.

    Args:
        names: of the `TokenStats` field and of the metric.
    """

    def __init__(self, names: tuple[str, str], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.field, self.metric = names
        self.given: list[float] = []
        self.means: list[float] = []

    def token_loss(self, tokens: TokenStats) -> torch.Tensor:
        self.given.append(getattr(tokens, self.field))
        return super().token_loss(tokens)

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.means.append(float(self.trainer.callback_metrics[self.metric]))


@pytest.mark.parametrize(
    ("objective", "names"),
    [(Cayley(), ("batch_mean_p", "train/mean_p")), (TALR(), ("batch_nll", "train/nll"))],
    ids=repr,
)
def test_an_objective_may_read_means_of_the_last_step_also_after_a_resume(
    rows: Path, tmp_path: Path, objective: Objective, names: tuple[str, str]
) -> None:
    def fit(**options: Any) -> Diary:
        constant = Schedule("constant", warmup=0)
        module = Diary(names, tiny.model(torch.float64), objective, optimizer=tiny.sgd, schedule=constant)
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        run = tiny.trainer(enable_checkpointing=True, callbacks=[saved])
        run.fit(module, datamodule=tiny.data(rows, batch_size=8), **options)
        return module

    whole = fit()
    assert whole.given == [0.0, *whole.means[:-1]]
    assert 0 < whole.means[0] != whole.means[1]
    again = fit(ckpt_path=tmp_path / "step=2.ckpt")
    assert again.given == whole.given[2:]
    tiny.assert_close(tiny.weights(again), tiny.weights(whole), 0)


def test_an_override_of_token_loss_is_trained(rows: Path) -> None:
    class Half(ProbSFTModule):
        def token_loss(self, tokens: TokenStats) -> torch.Tensor:
            return super().token_loss(tokens) / 2

    def first_norm(kind: type[ProbSFTModule]) -> float:
        module = kind(tiny.model(torch.float64), NLL(), optimizer=tiny.sgd)
        run = tiny.trainer(max_steps=1)
        run.fit(module, datamodule=tiny.data(rows))
        return float(run.callback_metrics["train/grad_norm"])

    assert first_norm(Half) == pytest.approx(first_norm(ProbSFTModule) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Generation(max_new_tokens=0), "generation.max_new_tokens"),
        (lambda: Generation(temperature=-1), "generation.temperature"),
        (lambda: Generation(top_p=0), "generation.top_p"),
        (lambda: ProbSFTModule(tiny.model(), logits_budget_mb=0), "model.logits_budget_mb"),
        (lambda: ProbSFTModule(tiny.model(), normalize="token"), "model.normalize"),
        (lambda: ProbSFTModule(tiny.model(), Curious()), "model.objective.needs: expected names among .* got entropie"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(build: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build()


def test_bf16_weights_with_a_small_learning_rate_raise_a_warning(rows: Path) -> None:
    module = ProbSFTModule(tiny.source(), NLL(), optimizer=lambda p: torch.optim.AdamW(p, lr=5e-6))
    with pytest.warns(UserWarning, match="bf16-true with lr 5e-06"):
        tiny.trainer(max_steps=1, precision="bf16-true").fit(module, datamodule=tiny.data(rows))
    assert {p.dtype for p in module.model.parameters()} == {torch.bfloat16}


def test_a_document_longer_than_the_models_positions_is_refused(rows: Path) -> None:
    module = ProbSFTModule(tiny.source(max_position_embeddings=16), NLL(), optimizer=tiny.sgd)
    with pytest.raises(UserError, match="data.max_length: expected documents within the model's 16 positions"):
        tiny.trainer().fit(module, datamodule=tiny.data(rows))


def test_a_memory_budget_sets_the_rows_of_a_chunk() -> None:
    module = ProbSFTModule(tiny.model(), logits_budget_mb=0.01)
    head = module.model.get_output_embeddings()
    assert head.chunk_size == int(0.01 * 2**20 / (4 * head.out_features))


def test_fp16_is_refused_by_name(rows: Path) -> None:
    module = ProbSFTModule(tiny.source(), NLL(), optimizer=tiny.sgd)
    with pytest.raises(UserError, match="trainer.precision"):
        tiny.trainer(max_steps=1, precision="16-true").fit(module, datamodule=tiny.data(rows))
