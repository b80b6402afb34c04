"""Early stopping: when a run stops, resumed or not, and the reason that it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_probsft.errors import UserError
from lit_probsft.training.early_stopping import EarlyStop, StoppingOptions
from tests import tiny
from tests.cli.test_fit import STOPPER, config, fit, rows_of, slow


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def overfitted(folder: Path, **changes: Any) -> Path:
    """Twelve epochs of three steps with a learning rate so large that val/nll soon rises."""
    return config(folder, **{"trainer__max_epochs": 12, "model__optimizer": optimizer(0.3), **changes})


def optimizer(lr: float) -> dict[str, Any]:
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}}


def record_of(name: str) -> dict[str, Any]:
    return dict(json.loads(Path("runs", name, "run.json").read_text()))


def validated(name: str) -> list[tuple[int, float]]:
    return [
        (int(row["step"]), float(row["val/nll"]))
        for row in rows_of(Path("runs", name, "metrics.csv"))
        if row["val/nll"]
    ]


OURS = ["--early_stopping.patience", "2", "--early_stopping.min_delta", "0.01"]
LIGHTNINGS = [
    "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/nll", "--trainer.callbacks.patience=2",
    "--trainer.callbacks.min_delta=0.01", "--checkpoints.export=best",
]  # fmt: skip


@pytest.mark.parametrize(
    "flags", [pytest.param(OURS, id="ours"), pytest.param(LIGHTNINGS, id="lightning's", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("every", [["--validate_every", "1"], slow([])], ids=["by steps", "by epochs"])
def test_a_run_stops_when_patience_is_exhausted_interrupted_or_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    every: list[str],
) -> None:
    (tmp_path / "stopper_of_test_early_stopping.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(tmp_path)
    path = overfitted(tmp_path)
    flags = [*flags, *every]
    whole = fit(path, "--name", "whole", *flags)
    _, *found = validated("whole")
    best, waited, expected = float("inf"), 0, None
    for step, nll in found:  # the law in obvious lines
        best, waited = (nll, 0) if nll < best - 0.01 else (best, waited + 1)
        if waited == 2:
            expected = step + 1
            break
    assert expected is not None
    assert whole.trainer.global_step == expected < 36
    assert found[-1][0] == expected - 1

    record = record_of("whole")
    assert record["status"] == "completed"
    assert "val/nll" in record["stopped_early"]
    said = capsys.readouterr().out
    assert f"stopped: before its last step: {record['stopped_early']}" in said
    assert f"steps:   {expected} of 36 in " in said
    lowest = min(found, key=lambda pair: pair[1])
    assert record["exported_step"] == lowest[0] + 1
    assert record["validations"]["best"]["step"] == lowest[0] + 1
    assert record["validations"]["last"]["step"] == expected

    stop = expected - 1 if every else 4  # while it waits
    stopper = f"{{class_path: stopper_of_test_early_stopping.Stopper, init_args: {{step: {stop}}}}}"
    with pytest.raises(RuntimeError, match="the power goes out"):
        fit(path, "--name", "parts", *flags, "--checkpoints.save_every", "1", f"--trainer.callbacks+={stopper}")
    fit(path, "--name", "parts", *flags, "--checkpoints.save_every", "1", "--resume")
    again = record_of("parts")
    assert {k: again[k] for k in ("stopped_early", "validations", "metrics", "exported_step")}.items() >= {
        k: record[k] for k in ("stopped_early", "validations", "exported_step")
    }.items()
    assert validated("parts") == validated("whole")
    one, other = (load_file(f"runs/{name}/hf/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)

    capsys.readouterr()
    fit(path, "--name", "parts", *flags, "--resume")
    assert f"runs/parts: the run is complete, it stopped early: {record['stopped_early']}" in capsys.readouterr().out
    assert record_of("parts")["status"] == "completed"
    assert record_of("parts")["counts"] == record["counts"]


@pytest.mark.slow
def test_a_stopped_run_continues_with_more_patience(tmp_path: Path) -> None:
    path = overfitted(tmp_path, trainer__max_epochs=4)
    first = fit(path, "--early_stopping.patience=1", "--validate_every=1").trainer.global_step
    assert first < 12
    assert fit(path, "--early_stopping.patience=99", "--validate_every=1", "--resume").trainer.global_step == 12
    assert record_of("tiny")["stopped_early"] is None
    best = min(validated("tiny")[1:], key=lambda pair: pair[1])
    assert record_of("tiny")["exported_step"] == best[0] + 1


@pytest.mark.slow
def test_checkpoints_export_is_respected(tmp_path: Path) -> None:
    cli = fit(overfitted(tmp_path), *OURS, "--validate_every=1", "--checkpoints.export=final")
    assert record_of("tiny")["exported_step"] == cli.trainer.global_step
    weights = tiny.weights(cli.model)
    exported = load_file("runs/tiny/hf/model.safetensors")
    assert all(torch.equal(exported[name], weights[name]) for name in exported)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--early_stopping.patience", "0"], "early_stopping.patience: expected at least 1 validation, got 0"),
        (["--early_stopping.patience", "soon"], "early_stopping.patience: expected a whole number or null, got 'soon'"),
        (["--early_stopping.min_delta", "-1"], "early_stopping.min_delta: expected 0 nats or more, got -1.0"),
        (
            ["--early_stopping.min_delta", "0.1"],
            "early_stopping.min_delta: expected early_stopping.patience with it, got 0.1",
        ),
        (
            ["--early_stopping.patience", "1", "--data.validation", "null"],
            "early_stopping.patience: expected data.validation or data.validation_fraction with it, to watch "
            "val/nll, got no validation",
        ),
        (
            ["--early_stopping.patience", "1", "--trainer.limit_val_batches", "0"],
            "early_stopping.patience: expected data.validation or data.validation_fraction with it, to watch "
            "val/nll, got no validation",
        ),
    ],
)
def test_options_that_would_never_stop_a_run_are_refused(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        fit(config(tmp_path), *flags)
    assert str(caught.value) == message
    assert not Path("runs").exists()


def test_early_stopping_is_off_by_default() -> None:
    assert StoppingOptions().patience is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_best_score_resumes_exactly_in_the_dtype_of_its_metric(dtype: torch.dtype) -> None:
    """It is compared on the device of the metric, and Apple's GPUs have no double."""
    stop, best = EarlyStop(), torch.tensor(0.1, dtype=dtype)
    stop.load_state_dict({"best": best.item(), "best_step": 3, "waited": 1, "of": None})
    assert stop.best_score.dtype == dtype
    assert stop.best_score == best
    assert stop.state_dict()["best"] == best.item()


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_validation(server: Any, tmp_path: Path) -> None:
    """Two processes stop after the same step as one."""
    path = overfitted(tmp_path, trainer__callbacks=[{"class_path": "tests.crash.callbacks.Diary"}])
    flags = [*OURS, "--validate_every=1", "--checkpoints.save_every=1"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4"]
    for name, more in (("one", []), ("two", two)):
        run = server.run("fit", "--config", path, "--name", name, *flags, *more, cwd=tmp_path)
        assert run.status == 0, run.output[-4000:]
    steps = record_of("one")["counts"]["optimizer_steps"]
    assert steps < 36
    assert record_of("two")["counts"]["optimizer_steps"] == steps
    assert record_of("two")["stopped_early"] == record_of("one")["stopped_early"]
    diaries = [(tmp_path / f"runs/two.{rank}.diary").read_text().count('"step"') for rank in (0, 1)]
    assert diaries == [steps, steps]
