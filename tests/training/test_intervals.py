"""Intervals are exact in optimizer steps, with accumulation and over a resume."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_probsft.errors import UserError
from lit_probsft.run import record
from lit_probsft.training.checkpoints import CheckpointOptions
from lit_probsft.training.intervals import Every, ValidateEvery
from lit_probsft.training.lightning_internals import between_steps
from lit_probsft.training.module import ProbSFTModule
from tests import tiny
from tests.cli.test_fit import config, fit, rows_of, slow


@given(steps=st.integers(1, 50), share=st.integers(1, 99), in_epoch=st.integers(1, 200))
def test_the_first_step_at_or_past_each_multiple_is_due(steps: int, share: int, in_epoch: int) -> None:
    total = 3 * in_epoch
    for every, length in (
        (Every.of(steps, "x"), Fraction(steps)),
        (Every.of(share / 100, "x"), Fraction(share, 100) * in_epoch),
        (Every.of("epoch", "x"), Fraction(in_epoch)),
    ):
        assert every is not None
        multiples = (math.ceil(i * length) for i in range(1, math.floor(total / length) + 1))
        assert [step for step in range(1, total + 1) if every.falls_on(step, in_epoch)] == sorted(set(multiples))


@given(parts=st.integers(1, 20), in_epoch=st.integers(1, 200))
def test_an_integer_fraction_of_an_epoch_is_due_at_the_end_of_each_epoch(parts: int, in_epoch: int) -> None:
    every = Every("x", share=Fraction(1, parts))
    assert all(every.falls_on(epoch * in_epoch, in_epoch) for epoch in (1, 2, 7))


@pytest.mark.parametrize("name", ["validate_every", "checkpoints.save_every"])
@pytest.mark.parametrize("value", [0, -3, 0.0, 1.5, -0.5, math.nan, True, "often"])
def test_an_invalid_interval_is_refused(value: Any, name: str) -> None:
    expected = "expected optimizer steps (1, 2, ...), a share of an epoch between 0 and 1, or epoch"
    with pytest.raises(UserError, match=f"^{re.escape(f'{name}: {expected}, got {value!r}')}"):
        Every.of(value, name) if name == "validate_every" else CheckpointOptions(save_every=value)


BAD = {
    "one or one": (
        ["--validate_every", "1.0"],
        "validate_every: expected optimizer steps (1, 2, ...), a share of an epoch between 0 and 1, or epoch, got 1.0; "
        "1 is each optimizer step, epoch an epoch",
    ),
    "a word": (["--validate_every", "often"], "validate_every: expected a number, epoch or null, got 'often'"),
    "saving": (
        ["--checkpoints.save_every", "0"],
        "checkpoints.save_every: expected optimizer steps (1, 2, ...), a share of an epoch between 0 and 1, or epoch, "
        "got 0",
    ),
    "the old name": (
        ["--checkpoints.every_n_steps", "3"],
        "checkpoints.every_n_steps: this option is now called checkpoints.save_every",
    ),
    "two ways": (
        ["--validate_every", "2", "--trainer.val_check_interval", "4"],
        "validate_every: expected either validate_every or trainer.val_check_interval, got both",
    ),
    "a stream": (
        ["--validate_every", "0.25", "--data.streaming", "true", "--trainer.max_steps", "3"],
        "validate_every: expected optimizer steps (1, 2, ...) with data.streaming, which has no epochs, got 0.25",
    ),
    "a stream that is saved": (
        ["--checkpoints.save_every", "epoch", "--data.streaming", "true", "--trainer.max_steps", "3"],
        "checkpoints.save_every: expected optimizer steps (1, 2, ...) with data.streaming, which has no epochs, "
        "got epoch",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_intervals_give_one_message_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    flags, message = BAD[name]
    with pytest.raises(UserError) as caught:
        fit(config(tmp_path), *flags)
    assert str(caught.value) == message
    assert not (tmp_path / "runs").exists()


def test_the_old_name_of_save_every_is_reported_in_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="every_n_steps.*save_every"):
        fit(config(tmp_path, checkpoints__every_n_steps=3))


class Validated(L.Callback):
    """Records the steps after which the trainer validates."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert between_steps(trainer)
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize("accumulate", [2, slow(1), slow(4)])
@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4, 6]), (9, [6]), (0.5, [2, 3, 5, 6]), ("epoch", [3, 6])],
)
def test_a_run_validates_at_these_steps_and_at_its_end(
    tmp_path: Path, accumulate: int, value: Any, expected: list[int]
) -> None:
    """Two epochs of three steps."""
    path, seen = tiny.write_rows(tmp_path / "rows.jsonl"), Validated()
    every = Every.of(value, "validate_every")
    assert every is not None
    tiny.trainer(max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[ValidateEvery(every), seen]).fit(
        ProbSFTModule(tiny.model(), optimizer=tiny.sgd),
        datamodule=tiny.data(path, batch_size=8 // accumulate, validation=tiny.rows(path)),
    )
    assert seen.steps == expected


def test_a_run_on_a_stream_validates_by_steps(tmp_path: Path) -> None:
    path, seen = tiny.write_rows(tmp_path / "rows.jsonl"), Validated()
    data = tiny.data(path, batch_size=4, validation=tiny.rows(path), streaming=True, shuffle_buffer=12)
    module, length = ProbSFTModule(tiny.model(), optimizer=tiny.sgd), {"max_epochs": -1, "max_steps": 5}
    callbacks = [ValidateEvery(Every("validate_every", steps=2)), seen]
    tiny.trainer(**length, accumulate_grad_batches=2, callbacks=callbacks).fit(module, datamodule=data)
    assert seen.steps == [2, 4, 5]
    share = [ValidateEvery(Every("validate_every", share=Fraction(1, 4)))]
    with pytest.raises(UserError, match="^validate_every: expected optimizer steps .* got 0.25$"):
        tiny.trainer(**length, callbacks=share).fit(module, datamodule=data)


@pytest.mark.parametrize("every", [[], slow(["--validate_every", "9"])], ids=["epochs", "steps"])
def test_a_run_that_ends_within_an_epoch_is_validated_and_has_a_first_and_a_last_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    every: list[str],
) -> None:
    """Epochs of three steps; resumed from the validation, the run and its bar go on with the next step."""
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    monkeypatch.setattr(record, "rank_zero_info", lines.append)
    path = config(tmp_path, trainer__log_every_n_steps=50, trainer__enable_progress_bar=True)
    fit(path, "--trainer.max_steps", "2", *every)
    capsys.readouterr()
    fit(path, "--trainer.max_steps", "5", "--trainer.max_epochs", "2", "--resume", *every)
    bars = [line for line in capsys.readouterr().out.split("\r") if line.startswith("Epoch")]
    rows = rows_of(tmp_path / "runs/tiny/metrics.csv")
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1", "4"]
    validated = ["0", "1", "4"] if every else ["0", "1", "2", "4"]
    assert [row["step"] for row in rows if row["val/nll"]] == validated
    assert "resuming runs/tiny from checkpoints/step-00000002.ckpt: step 2 of 5, epoch 1 of 2" in lines
    assert any(bar.startswith("Epoch 0:  67%") and " 2/3 " in bar for bar in bars)


def without_the_clock(path: Path) -> list[dict[str, str]]:
    rows = [{k: v for k, v in row.items() if v and k != "tokens_per_second"} for row in rows_of(path)]
    return [row for row in rows if row.keys() - {"step", "epoch"}]


@pytest.mark.parametrize("stop", [4, *(slow(stop) for stop in (2, 3, 5))])
def test_a_resumed_run_validates_and_saves_like_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """With accumulation; the checkpoint was saved after a step or a validation."""
    monkeypatch.chdir(tmp_path)
    path = config(tmp_path, data__batch_size=4, trainer__accumulate_grad_batches=2, trainer__max_epochs=2)
    flags = ["--validate_every", "2", "--checkpoints.save_every", "1"]
    # Ends, and so is validated, where the whole run is not.
    constant = ["--model.schedule.decay", "constant", "--model.schedule.warmup", "0"]
    fit(path, "--name", "whole", *flags, *constant)
    fit(path, "--name", "parts", *flags, *constant, "--trainer.max_steps", str(stop))
    fit(path, "--name", "parts", *flags, *constant, "--resume")
    whole, parts = (without_the_clock(tmp_path / f"runs/{name}/metrics.csv") for name in ("whole", "parts"))
    assert [row["step"] for row in whole if "val/nll" in row] == ["0", "1", "3", "5"]
    assert [row for row in parts if "train/loss" in row] == [row for row in whole if "train/loss" in row]
    extra = {str(stop - 1)} if stop % 2 else set()
    assert [row for row in parts if "val/nll" in row and row["step"] not in extra] == [
        row for row in whole if "val/nll" in row and row["step"] not in extra
    ]


def test_validate_every_without_validation_data_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="validate_every: there is no data.validation or data.validation_fraction"):
        fit(config(tmp_path, data__validation=None), "--validate_every", "2")
