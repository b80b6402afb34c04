"""The capability and the means that objectives read: measured, read from a source, and resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.errors import UserError
from lit_probsft.objectives import (
    NLL,
    Balanced,
    CapabilityPower,
    NegP,
    Power,
    QuantileThreshold,
    RunningPower,
    Threshold,
)
from lit_probsft.training.fitting import Capability, ObjectiveState
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.members import QUANTILES


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 20)


@pytest.fixture
def source(tmp_path: Path) -> str:
    content = {"mean_prob": 0.25, "permilles": QUANTILES}
    (tmp_path / "capability.json").write_text(json.dumps(content))
    return str(tmp_path)


class Diary(ProbSFTModule):
    """Records the logged metrics of each step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, schedule=Schedule("constant", warmup=0), **options)
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.logged.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})


def fit(rows: Path, objective: Any, ckpt_path: Path | None = None, keep: Path | None = None, **options: Any) -> Diary:
    module = Diary(tiny.model(), objective, optimizer=tiny.adamw)
    trainer = tiny.trainer(**{"max_epochs": 2, **options})
    trainer.fit(module, datamodule=tiny.data(rows), ckpt_path=ckpt_path)
    if keep is not None:
        trainer.save_checkpoint(keep)
    return module


def by_hand(rows: Path) -> tuple[float, torch.Tensor]:
    """Mean p of the model before training and all tokens' log-odds, document by document in float64."""
    model, data = tiny.model().double().eval(), tiny.data(rows, batch_size=1)
    data.setup("fit")
    odds = []
    for batch in data.train_dataloader():
        with torch.no_grad():
            log_probs = model(batch["input_ids"]).logits[0, :-1].log_softmax(-1)
        labels = batch["labels"][0, 1:]
        kept = labels != -100
        log_p = log_probs[kept].gather(-1, labels[kept][:, None])[:, 0]
        odds.append(log_p - torch.log(-torch.expm1(log_p)))
    together = torch.cat(odds)
    return float(together.sigmoid().mean()), together.sort().values


def test_the_capability_is_measured_before_the_first_step(rows: Path) -> None:
    mean_p, odds = by_hand(rows)
    module = fit(rows, CapabilityPower(), max_steps=2)
    assert module.objective_state.capability.mean_prob == pytest.approx(mean_p, rel=1e-5)
    assert [step["train/alpha"] for step in module.logged] == pytest.approx([mean_p / (1 - mean_p)] * 2, rel=1e-5)
    for permille in (1, 100, 500, 999):
        expected = odds[math.ceil(permille * len(odds) / 1000) - 1]
        assert module.objective_state.capability.log_odds[permille - 1] == pytest.approx(expected.item(), abs=1e-3)


def test_the_capability_of_a_stream_is_measured_on_its_first_rows(rows: Path) -> None:
    data = tiny.data(rows, streaming=True)
    module = Diary(tiny.model(), CapabilityPower(), optimizer=tiny.adamw, probe_rows=20)
    tiny.trainer(max_epochs=-1, max_steps=1).fit(module, datamodule=data)
    assert module.objective_state.capability.mean_prob == pytest.approx(by_hand(rows)[0], rel=1e-5)


@pytest.mark.parametrize(("side", "inside"), [("top", 0.7), ("bottom", 0.7)])
def test_a_quantile_threshold_keeps_its_share_and_does_not_move(rows: Path, side: Any, inside: float) -> None:
    module = fit(rows, QuantileThreshold(NLL(), keep=0.7, side=side), max_epochs=1, accumulate_grad_batches=3)
    assert module.logged[-1]["train/inside"] == pytest.approx(inside, abs=0.01)  # one step, of the model measured
    capability = module.objective_state.capability
    edges = (capability.prob_at(300), 1.0) if side == "top" else (0.0, capability.prob_at(700))
    assert module.objective.fitted(capability) == Threshold(NLL(), *edges)
    assert module.objective_state.interval == edges


def test_a_source_replaces_the_measurement(rows: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_probsft.training.module.measure_capability", lambda *args: pytest.fail("measured"))
    module = fit(rows, CapabilityPower(source=source), max_steps=1)
    assert module.logged[0]["train/alpha"] == pytest.approx(1 / 3)
    same = fit(rows, Power(1 / 3), max_steps=1)
    for name, value in tiny.weights(module).items():
        torch.testing.assert_close(value, tiny.weights(same)[name], rtol=0, atol=1e-7)


def test_a_source_of_another_model_or_other_rows_raises_a_warning(
    rows: Path, source: str, recwarn: pytest.WarningsRecorder
) -> None:
    path, data = Path(source) / "capability.json", tiny.data(rows)
    content = json.loads(path.read_text())
    data.setup("fit")
    for model, fingerprint, expected in (
        (tiny.source().name, data.fingerprint, []),
        ("another", "other", ["model another, now llama from", f"data_fingerprint other, now {data.fingerprint}"]),
    ):
        path.write_text(json.dumps({**content, "model": model, "data_fingerprint": fingerprint}))
        recwarn.clear()
        trainer = tiny.trainer(max_steps=1)
        trainer.fit(ProbSFTModule(tiny.source(), CapabilityPower(source=source)), datamodule=tiny.data(rows))
        said = [str(w.message) for w in recwarn if "was measured with another" in str(w.message)]
        assert len(said) == len(expected)
        assert all(words in text for words, text in zip(expected, said, strict=True))


def test_the_running_mean_starts_at_the_capability_and_is_updated_by_each_step(rows: Path, source: str) -> None:
    module = fit(rows, RunningPower(exponent=2.0, source=source))
    expected, m = [], 0.25
    for step in module.logged:
        expected.append(m**2)
        m = 0.9 * m + 0.1 * step["train/mean_p"]
    assert [step["train/alpha"] for step in module.logged] == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == len(expected) == 6


@pytest.mark.parametrize("objective", [RunningPower(), QuantileThreshold(RunningPower(), 0.6)], ids=repr)
def test_a_resumed_run_equals_an_uninterrupted_one(rows: Path, tmp_path: Path, objective: Any) -> None:
    whole = fit(rows, objective)
    fit(rows, objective, max_epochs=1, keep=tmp_path / "half.ckpt")
    rest = fit(rows, objective, ckpt_path=tmp_path / "half.ckpt")
    assert rest.logged == whole.logged[3:]
    assert rest.objective_state.state_dict() == whole.objective_state.state_dict()
    for name, value in tiny.weights(whole).items():
        assert torch.equal(tiny.weights(rest)[name], value), name


def test_a_checkpoint_wins_over_a_changed_source(rows: Path, tmp_path: Path, source: str) -> None:
    objective = CapabilityPower(source=source)
    fit(rows, objective, max_epochs=1, keep=tmp_path / "half.ckpt")
    (tmp_path / "capability.json").write_text(json.dumps({"mean_prob": 0.5, "permilles": QUANTILES}))
    assert fit(rows, objective, ckpt_path=tmp_path / "half.ckpt").logged[0]["train/alpha"] == pytest.approx(1 / 3)


def test_validation_without_a_capability_logs_everything_except_the_loss(rows: Path) -> None:
    module = ProbSFTModule(tiny.model(), QuantileThreshold())
    data = tiny.data(rows, validation_fraction=0.5)
    (metrics,) = tiny.trainer().validate(module, datamodule=data, verbose=False)
    (expected,) = tiny.trainer().validate(ProbSFTModule(tiny.model(), NLL()), datamodule=data, verbose=False)
    assert "val/loss" not in metrics
    assert metrics == {name: value for name, value in expected.items() if name in metrics}
    assert "val/mean_p" in metrics


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: CapabilityPower(source="no/where"), "model.objective.source: .* got 'no/where'"),
        (lambda path: RunningPower(source=str(path / "other.json")), "model.objective.source: .* with other content"),
        (
            lambda path: QuantileThreshold(CapabilityPower(source=str(path)), source=str(path / "capability.json")),
            "model.objective.source: expected the same",
        ),
        (lambda path: QuantileThreshold(keep=1.0), "QuantileThreshold.keep: .* got 1.0"),
        (lambda path: QuantileThreshold(keep=0.12345), "QuantileThreshold.keep"),
        (lambda path: QuantileThreshold(keep=math.nan), "QuantileThreshold.keep"),
        (lambda path: QuantileThreshold(side="left"), "QuantileThreshold.side: expected top or bottom, got 'left'"),
        (lambda path: CapabilityPower(max_alpha=0.0), "CapabilityPower.max_alpha"),
        (lambda path: RunningPower(exponent=0.0), "RunningPower.exponent"),
        (lambda path: Balanced(CapabilityPower()), "Balanced.mean_weight"),
    ],
)
def test_invalid_arguments_are_refused_before_a_model_is_loaded(source: str, build: Any, message: str) -> None:
    path = Path(source)
    (path / "other.json").write_text('{"mean_prob": 0.5}')
    with pytest.raises(UserError, match=message):
        ProbSFTModule("no/such/model", build(path))


def test_data_without_rows_to_probe_are_refused_before_a_model_is_loaded(rows: Path) -> None:
    data = tiny.data(rows)
    data.setup("fit")
    module = ProbSFTModule(tiny.source(), CapabilityPower())
    with pytest.raises(UserError, match="CapabilityPower needs capability"):
        tiny.trainer().fit(module, data.train_dataloader())
    assert module.model is None


def test_a_capability_is_filled_in_at_every_level_of_an_objective() -> None:
    capability = Capability(0.2, QUANTILES)
    objective = Balanced(QuantileThreshold(Threshold(CapabilityPower(), 0.01, 1.0), keep=0.5), mean_weight=0.1)
    expected = Balanced(Threshold(Threshold(Power(0.25), 0.01, 1.0), capability.prob_at(500), 1.0), mean_weight=0.1)
    assert objective.fitted(capability) == expected
    assert NegP().fitted(capability) == NegP()
    assert CapabilityPower().fitted(Capability(1.0, QUANTILES)) == Power(10.0)
    assert capability.prob_at(999) < Capability(0.2, (40.0,) * 999).prob_at(1) < 1


def test_a_step_without_tokens_does_not_change_the_running_mean() -> None:
    fitted = ObjectiveState(RunningPower())
    fitted.set(Capability(0.2, QUANTILES))
    fitted.add_step(math.nan, math.nan)
    assert fitted.running_mean_p == 0.2
