"""How long a run is, and what happens every so often in it, in optimizer steps and epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lit_probsft.errors import UserError

Interval = int | float | Literal["epoch"]
"""As a user writes it: optimizer steps, a share of an epoch, or one. Nothing else means 1.0, which could be both."""


@dataclass(frozen=True)
class Every:
    """Every so many optimizer steps, or so much of an epoch, counted from the start of the run.

    Due are the first steps at or past 1, 2, ... times the interval, so that a share of a quarter falls on the end of
    each epoch, however many steps it has. Micro-batches play no part in it.

    Args:
        name: of the argument, for errors.
        steps: optimizer steps, at least 1; None for a share.
        share: of an epoch, above 0, at most 1.
    """

    name: str
    steps: int | None = None
    share: Fraction | None = None

    @classmethod
    def of(cls, value: Any, name: str) -> Every | None:
        """What the user has written; None for None.

        Raises:
            UserError: it is none of the three.
        """
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return cls(name, steps=value)
        if isinstance(value, float) and 0 < value < 1:
            return cls(name, share=Fraction(str(value)))
        if value == "epoch":
            return cls(name, share=Fraction(1))
        meant = "; 1 is each optimizer step, epoch an epoch" if value == 1 else ""
        raise UserError(
            name,
            "expected optimizer steps (1, 2, ...), a share of an epoch between 0 and 1, or epoch, "
            f"got {value!r}{meant}",
        )

    def check(self, trainer: L.Trainer) -> None:
        """Refuse a share of what has no epochs.

        Raises:
            UserError: it is asked for.
        """
        if self.share is None:
            return
        if getattr(getattr(trainer, "datamodule", None), "streaming", False):
            self.refuse_stream()
        if math.isinf(trainer.num_training_batches):
            raise UserError(self.name, "expected optimizer steps where the data do not know how many there are")

    def refuse_stream(self) -> None:
        """Nothing for a number of steps.

        Raises:
            UserError: for a share.
        """
        if self.share is not None:
            got = "epoch" if self.share == 1 else f"{float(self.share):g}"
            raise UserError(
                self.name, f"expected optimizer steps (1, 2, ...) with data.streaming, which has no epochs, got {got}"
            )

    def due(self, trainer: L.Trainer) -> bool:
        """Is it time, after the trainer's last optimizer step?"""
        in_epoch = 1 if self.share is None else -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        return self.falls_on(trainer.global_step, in_epoch)

    def falls_on(self, step: int, in_epoch: int) -> bool:
        """Is step `step`, counted from 1, the first at or past a multiple of the interval?

        Args:
            step: number of steps done.
            in_epoch: optimizer steps of an epoch.
        """
        length = Fraction(self.steps) if self.steps is not None else (self.share or 1) * in_epoch
        return step > 0 and step // length > (step - 1) // length


class ValidateEvery(Callback):
    """Validates at an interval and after the last optimizer step of the run, never within one.

    Lightning's `val_check_interval` counts micro-batches, of the epoch or of the run, rounds a share of them down, and
    leaves the end of an epoch out that is no multiple.
    """

    def __init__(self, every: Every) -> None:
        self.every = every

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the place of Lightning's decision."""
        if stage == "fit":
            loop = trainer.fit_loop.epoch_loop
            loop._should_check_val_fx = lambda data_fetcher: self._due(trainer)  # type: ignore[method-assign]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a share of what has no epochs; say that there is nothing to validate on."""
        self.every.check(trainer)
        if not validates(trainer):
            rank_zero_warn("validate_every: there is no data.validation or data.validation_fraction to validate on")

    def _due(self, trainer: L.Trainer) -> bool:
        loop = trainer.fit_loop.epoch_loop
        if loop.restarting and loop.restarted_on_last:  # from a checkpoint that was written while it validated
            return True
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        return at_boundary(trainer) and (stops or ends_here(trainer) or self.every.due(trainer))


def at_boundary(trainer: L.Trainer) -> bool:
    """Has the micro-batch that just ended completed an optimizer step?"""
    return not trainer.fit_loop._should_accumulate()


def epoch_ends(trainer: L.Trainer) -> bool:
    """Was the last micro-batch the last one of its epoch?"""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def ends_here(trainer: L.Trainer) -> bool:
    """Was the last optimizer step the last one of the run? To be asked before Lightning counts an epoch that was cut
    short as whole."""
    counts = trainer.fit_loop.epoch_progress.current
    return trainer.global_step == trainer.max_steps or (epoch_ends(trainer) and counts.ready == trainer.max_epochs)


def validation_set(trainer: L.Trainer) -> str | None:
    """What tells the set that val/nll is of from others, whose val/nll says nothing about it."""
    report = getattr(getattr(trainer, "datamodule", None), "report", {})
    fingerprint = report.get("validation", {}).get("fingerprint")
    return None if fingerprint is None else str(fingerprint)


def validates(trainer: L.Trainer) -> bool:
    """Is there anything to validate on during training?"""
    if not trainer.enable_validation:
        return False
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.setup_data()  # does nothing the second time
    return not loop.skip


def validation_follows(trainer: L.Trainer) -> bool:
    """Will the trainer validate before the next micro-batch?"""
    loop = trainer.fit_loop
    due = loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
    return due and validates(trainer)


def total_steps(trainer: L.Trainer) -> int:
    """Optimizer steps of the whole run, from the data's plan.

    Raises:
        UserError: nothing says when it ends.
    """
    in_epoch = steps_in_epoch(trainer)
    steps = trainer.max_steps if trainer.max_steps >= 0 else math.inf
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and in_epoch is not None:
        steps = min(steps, in_epoch * trainer.max_epochs)
    if math.isinf(steps):
        raise UserError("trainer", "expected max_steps, or max_epochs with an InstructionDataModule, got neither")
    return int(steps)


def steps_in_epoch(trainer: L.Trainer) -> int | None:
    """Optimizer steps of an epoch; None if the data do not say.

    Raises:
        UserError: the trainer's limit would cut a window in two.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    if not hasattr(datamodule, "num_windows"):
        return None
    limit, window = trainer.limit_train_batches, trainer.accumulate_grad_batches
    batches = datamodule.num_windows * window
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if batches % window:
        raise UserError(
            "trainer.limit_train_batches",
            f"expected a multiple of accumulate_grad_batches ({window}), since a "
            f"step is divided by all the tokens of its window, got {batches}",
        )
    return int(batches // window)


def validate_between_steps(trainer: L.Trainer) -> None:
    """Let Lightning validate, and so save, between two optimizer steps only: a window cut in two could not be
    resumed."""
    window, interval = trainer.accumulate_grad_batches, trainer.val_check_batch
    if isinstance(interval, int) and interval % window:
        trainer.val_check_batch = interval + window - interval % window
