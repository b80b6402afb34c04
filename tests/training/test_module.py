"""A step means the same however it is cut; what is not finite is skipped; what is logged is what happened."""

from __future__ import annotations

import math
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
from lit_probsft.training.module import ProbSFTModule, _TokenLoss
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.members import ALL, CONTEXT, EntropyWeighted, Scheduled


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 20)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


CUTS = [(4, 2), (2, 4), (1, 8)]


@pytest.mark.parametrize("normalize", ["tokens", "sequence", "kept"])
@pytest.mark.parametrize(
    ("dtype", "optimizer", "tolerance"), [(torch.float64, tiny.adamw, 1e-10), (torch.float32, tiny.sgd, 1e-6)]
)
def test_a_step_is_the_same_however_it_is_cut_into_micro_batches(
    rows: Path, normalize: Any, dtype: torch.dtype, optimizer: Any, tolerance: float
) -> None:
    options = {"dtype": dtype, "optimizer": optimizer, "normalize": normalize, "objective": Threshold(NegP(), 0.003)}
    whole = tiny.weights(tiny.fit(rows, batch_size=8, accumulate=1, **options))
    for batch_size, accumulate in CUTS:
        same(whole, tiny.weights(tiny.fit(rows, batch_size=batch_size, accumulate=accumulate, **options)), tolerance)


# In the default suite one member stands for each way in which a loss comes to what it reads.
FAST = [NLL(), NegP(), Power(0.5), LabelSmoothing(0.1), GEM(), EAFT(), Cayley(), Scheduled(), ASFT(), PSFT()]
FAST += [member for member in ALL if isinstance(member, Threshold | EntropyWeighted)]
SLOW = [member for member in ALL if member not in FAST]


@pytest.mark.parametrize(
    "objective", [pytest.param(m, marks=pytest.mark.slow) if m in SLOW else m for m in ALL], ids=repr
)
def test_every_objective_gives_one_step_whatever_the_cut(rows: Path, objective: Objective) -> None:
    one = tiny.weights(tiny.fit(rows, batch_size=8, accumulate=1, objective=objective))
    other = tiny.weights(tiny.fit(rows, batch_size=2, accumulate=4, objective=objective))
    same(one, other, 1e-10)


def by_hand(model: Any, batches: list[dict[str, Any]], normalize: str) -> torch.Tensor:
    """What a step should minimize, from the model's own logits: NLL where p >= .004, divided as `normalize` says."""
    numerators, kept, counts = [], [], []
    for batch in batches:
        log_p = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        target = batch["labels"][:, 1:]
        picked = log_p.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        supervised = target != -100
        inside = supervised & (picked >= math.log(0.004))
        numerators.append((-picked * inside).sum(-1))
        kept.append(inside.sum(-1))
        counts.append(supervised.sum(-1))
    if normalize == "micro_batch":
        return sum(n.sum() / k.sum() for n, k in zip(numerators, kept, strict=True))
    n, k, c = (torch.cat(parts) for parts in (numerators, kept, counts))
    return {"tokens": n.sum() / c.sum(), "kept": n.sum() / k.sum(), "sequence": (n / c).mean()}[normalize]


@pytest.mark.parametrize("normalize", ["tokens", "sequence", "kept", "micro_batch"])
def test_a_step_follows_the_gradient_of_what_normalize_says(rows: Path, normalize: Any) -> None:
    objective = Threshold(NLL(), 0.004)
    module = ProbSFTModule(
        tiny.model(torch.float64), objective, tiny.sgd, schedule=Schedule("constant", 0), normalize=normalize
    )
    datamodule = tiny.data(rows, batch_size=4, length_pool=0)
    run = tiny.trainer(accumulate_grad_batches=2, max_steps=1)
    run.fit(module, datamodule=datamodule)
    reference = tiny.model(torch.float64)
    loss = by_hand(reference, list(datamodule.train_dataloader())[:2], normalize)
    loss.backward()
    assert 0 < float(run.callback_metrics["train/inside"]) < 1
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.1 * parameter.grad
    # RMSNorm rounds to fp32 inside, whatever the dtype of the model
    same(tiny.weights(module), reference.state_dict(), 1e-7)


def test_the_auxiliary_loss_of_a_mixture_of_experts_is_trained_on(rows: Path) -> None:
    """Under an objective that no token passes, only the auxiliary loss moves the weights, once per step."""
    experts = {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "output_router_logits": True,
        "router_aux_loss_coef": 1.0,
    }
    moved = []
    for accumulate in (1, 2):
        module = ProbSFTModule(
            tiny.model(**experts), Threshold(NLL(), 0.999), tiny.sgd, schedule=Schedule("constant", 0)
        )
        before = tiny.weights(module)
        tiny.trainer(accumulate_grad_batches=accumulate, max_steps=1).fit(
            module, datamodule=tiny.data(rows, batch_size=8 // accumulate, length_pool=0)
        )
        after = tiny.weights(module)
        moved.append(math.sqrt(sum(float((after[k] - before[k]).square().sum()) for k in before)))
    assert moved[0] > 0
    assert moved[1] == pytest.approx(moved[0], rel=0.5)


def test_the_papers_normalization_depends_on_the_cut(rows: Path) -> None:
    """`micro_batch` sums means of micro-batches: twice as many of them make the gradient about twice as large."""
    options = {"normalize": "micro_batch", "optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    start = tiny.weights(ProbSFTModule(tiny.model(torch.float64)))

    def first_step(batch_size: int, accumulate: int) -> float:
        module = ProbSFTModule(tiny.model(torch.float64), NLL(), schedule=Schedule("constant", 0), **options)
        tiny.trainer(accumulate_grad_batches=accumulate, max_steps=1).fit(
            module, datamodule=tiny.data(rows, batch_size=batch_size, length_pool=0)
        )
        after = tiny.weights(module)
        return math.sqrt(sum(float((after[k] - start[k]).square().sum()) for k in start))

    assert first_step(2, 4) / first_step(8, 1) == pytest.approx(4, rel=0.5)


@dataclass(frozen=True)
class Curious(NLL):
    """Asks for what nobody has."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropie"})


class Broken(ProbSFTModule):
    """Its loss is not finite at the steps named."""

    bad: set[int] = {1}
    kind = "inf"

    def token_loss(self, tokens: TokenStats) -> torch.Tensor:
        loss = super().token_loss(tokens)
        if self.training and self.global_step in self.bad:
            # inf has a finite gradient, nan has not: both must be seen
            loss = loss + math.inf if self.kind == "inf" else loss * math.nan
        return loss


@pytest.mark.parametrize("kind", ["inf", "nan"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_and_counted(rows: Path, kind: str, accumulate: int) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Broken):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            seen.append(tiny.weights(self))

    module = Watched(tiny.model(), NLL(), optimizer=tiny.adamw, schedule=Schedule("constant", 0))
    module.kind = kind
    run = tiny.trainer(accumulate_grad_batches=accumulate)
    run.fit(module, datamodule=tiny.data(rows, batch_size=8 // accumulate, length_pool=0))
    assert module.skipped_steps == 1
    assert run.global_step == 3
    steps = seen[accumulate - 1 :: accumulate]
    same(steps[0], steps[1], 0.0)
    assert any(not torch.equal(steps[1][k], steps[2][k]) for k in steps[1])
    assert all(value.isfinite().all() for value in steps[2].values())


def test_skipped_steps_that_are_not_in_a_row_end_nothing(tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 30)
    module = Broken(tiny.model(), NLL(), optimizer=tiny.adamw)
    module.bad = {step for step in range(30) if step % 7}
    tiny.trainer(max_epochs=2).fit(module, datamodule=tiny.data(rows, batch_size=2))
    assert module.trainer.global_step == 30
    assert module.skipped_steps == 25


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped(rows: Path, algorithm: str) -> None:
    """With SGD and a rate of one, a step is the clipped gradient itself."""
    start = tiny.weights(ProbSFTModule(tiny.model(torch.float64)))
    module = ProbSFTModule(
        tiny.model(torch.float64), NLL(), lambda p: torch.optim.SGD(p, lr=1.0), schedule=Schedule("constant", 0)
    )
    run = tiny.trainer(max_steps=1, gradient_clip_val=0.01, gradient_clip_algorithm=algorithm)
    run.fit(module, datamodule=tiny.data(rows))
    moved = torch.cat([(start[k] - v).flatten() for k, v in tiny.weights(module).items()])
    assert float(run.callback_metrics["train/grad_norm"]) > 0.1
    assert float(moved.norm() if algorithm == "norm" else moved.abs().max()) == pytest.approx(0.01, rel=1e-3)


def test_the_gradients_norm_survives_what_fp32_cannot_square() -> None:
    from lit_probsft.training.optim import total_norm

    huge = [torch.full((3,), 1e30), torch.full((4,), 1e30)]
    assert total_norm(huge).item() == pytest.approx(math.sqrt(7) * 1e30)


def test_the_logged_rate_is_that_of_the_step(rows: Path) -> None:
    seen: list[float] = []

    class Watched(ProbSFTModule):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            seen.append(float(self.trainer.callback_metrics["lr"]))

    module = Watched(tiny.model(), NLL(), tiny.sgd, schedule=Schedule("linear", warmup=0))
    tiny.trainer().fit(module, datamodule=tiny.data(rows, batch_size=8))
    assert seen == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 2}, 6),
        ({"max_epochs": 2, "max_steps": 4}, 4),
        ({"max_epochs": 3, "limit_train_batches": 2}, 3),
        ({"max_epochs": 2, "limit_train_batches": 0.7}, 4),
        ({"max_epochs": -1, "max_steps": 5}, 5),
    ],
)
def test_the_schedule_is_as_long_as_the_training(rows: Path, options: dict[str, Any], steps: int) -> None:
    module = ProbSFTModule(tiny.model(), NLL(), tiny.sgd)
    run = tiny.trainer(accumulate_grad_batches=2, **options)
    run.fit(module, datamodule=tiny.data(rows, batch_size=4))
    assert run.global_step == module.total_steps == steps


def test_a_limit_that_cuts_a_window_is_refused(rows: Path) -> None:
    module = ProbSFTModule(tiny.model(), NLL(), tiny.sgd)
    with pytest.raises(UserError, match="limit_train_batches: expected a multiple of accumulate_grad_batches"):
        tiny.trainer(accumulate_grad_batches=2, limit_train_batches=3).fit(module, datamodule=tiny.data(rows))


def test_validation_and_so_saving_waits_for_the_end_of_a_window(rows: Path, tmp_path: Path) -> None:
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
    tiny.trainer(precision="bf16-true").fit(module, datamodule=tiny.data(rows))
    for means in (module.train_means, module.evaluations[0].means):
        assert means.sums.dtype == torch.float64
        means.reset()
        assert means.sums.dtype == torch.float64


def test_ten_skipped_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 30)
    module = Broken(tiny.model(), NLL(), optimizer=tiny.adamw)
    module.bad = set(range(3, 100))
    with pytest.raises(UserError, match="10 optimizer steps in a row"):
        tiny.trainer(max_epochs=20).fit(module, datamodule=tiny.data(rows, batch_size=2))
    assert module.skipped_steps == 10
    assert module.trainer.global_step == 13


def test_what_is_logged_is_the_mean_over_the_windows_tokens(rows: Path) -> None:
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


def test_the_head_is_told_what_the_objective_reads_whatever_wraps_it() -> None:
    for objective in ALL:
        module = ProbSFTModule("a/model", objective)
        if module.objective_state.missing:
            module.objective_state.set(CONTEXT["capability"])
        seen = _TokenLoss(module)
        assert (seen.needs, seen.top_k) == (objective.needs, objective.top_k)
    assert _TokenLoss(ProbSFTModule("a/model", Threshold(EAFT(k=3)))).top_k == 3


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
    """Remembers what its objective was given of the step before, and that mean of each step.

    Args:
        names: of the field and of the metric.
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
def test_an_objective_may_read_means_of_the_step_before_also_after_a_restart(
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
    same(tiny.weights(again), tiny.weights(whole), 0)


def test_a_module_that_overrides_token_loss_trains_what_it_says(rows: Path) -> None:
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


def test_batches_of_another_loader_are_refused_by_what_they_lack(rows: Path) -> None:
    batch = {"input_ids": torch.zeros(1, 4, dtype=torch.long), "labels": torch.zeros(1, 4, dtype=torch.long)}
    module = ProbSFTModule(tiny.model(), NLL(), optimizer=tiny.sgd)
    with pytest.raises(UserError, match="window_tokens"):
        tiny.trainer(max_steps=1).fit(module, torch.utils.data.DataLoader([batch], batch_size=None))


def test_bf16_weights_with_a_small_learning_rate_are_warned_of(rows: Path) -> None:
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


def test_kept_with_an_auxiliary_loss_is_refused(rows: Path) -> None:
    experts = {"model_type": "mixtral", "num_local_experts": 4, "output_router_logits": True}
    module = ProbSFTModule(tiny.model(**experts), NLL(), tiny.sgd, normalize="kept")
    with pytest.raises(UserError, match="model.normalize: kept"):
        tiny.trainer().fit(module, datamodule=tiny.data(rows))


def test_fp16_is_refused_by_name(rows: Path) -> None:
    module = ProbSFTModule(tiny.source(), NLL(), optimizer=tiny.sgd)
    with pytest.raises(UserError, match="trainer.precision"):
        tiny.trainer(max_steps=1, precision="16-true").fit(module, datamodule=tiny.data(rows))
