"""Intervals in optimizer steps or shares of an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.training.lightning_internals import (
    also_validate_when,
    between_steps,
    may_stop_early,
    validate_when,
)
from lit_probsft.training.trainer_state import epoch_ends, run_ends, validates


@dataclass(frozen=True)
class Every:
    """An interval in optimizer steps or shares of an epoch, counted from the start of the run.

    The first step at or past each multiple of the interval is due. A quarter of an epoch is therefore due at the end of
    each epoch, however many steps it has. Micro-batches play no part.

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
        """Read what the user wrote; None stays None.

        Raises:
            UserError: the value is not one of the three kinds.
        """
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return cls(name, steps=value)
        if isinstance(value, float) and 0 < value < 1:
            return cls(name, share=Fraction(str(value)))
        if value == "epoch":
            return cls(name, share=Fraction(1))
        hint = "; 1 is each optimizer step, epoch an epoch" if value == 1 else ""
        raise UserError(
            name,
            f"expected optimizer steps (1, 2, ...), a share of an epoch between 0 and 1, or epoch, got {value!r}{hint}",
        )

    def check(self, trainer: L.Trainer) -> None:
        """Refuse a share if the data have no epochs.

        Raises:
            UserError: for a stream, or data of unknown length.
        """
        if self.share is None:
            return
        if getattr(getattr(trainer, "datamodule", None), "streaming", False):
            self.refuse_stream()
        if math.isinf(trainer.num_training_batches):
            raise UserError(self.name, "expected optimizer steps for data of unknown length")

    def refuse_stream(self) -> None:
        """Refuse a share of a stream.

        Raises:
            UserError: for a share.
        """
        if self.share is not None:
            got = "epoch" if self.share == 1 else f"{float(self.share):g}"
            raise UserError(
                self.name, f"expected optimizer steps (1, 2, ...) with data.streaming, which has no epochs, got {got}"
            )

    def due(self, trainer: L.Trainer) -> bool:
        """Whether the trainer's last optimizer step is due."""
        in_epoch = 1 if self.share is None else -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        return self.falls_on(trainer.global_step, in_epoch)

    def falls_on(self, step: int, in_epoch: int) -> bool:
        """Whether a step is the first at or past a multiple of the interval.

        Args:
            step: counted from 1.
            in_epoch: optimizer steps of an epoch.
        """
        length = Fraction(self.steps) if self.steps is not None else (self.share or 1) * in_epoch
        return step > 0 and step // length > (step - 1) // length


class ValidateEvery(Callback):
    """Validates at an interval, always between two steps.

    Lightning's `val_check_interval` counts micro-batches of the epoch or of the run, rounds a share of them down, and
    skips the end of an epoch that is no multiple.
    """

    def __init__(self, every: Every) -> None:
        self.every = every

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            validate_when(trainer, lambda: self._due(trainer))

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.every.check(trainer)
        if not validates(trainer):
            rank_zero_warn("validate_every: there is no data.validation or data.validation_fraction to validate on")

    def _due(self, trainer: L.Trainer) -> bool:
        return _restarts(trainer) or (between_steps(trainer) and self.every.due(trainer))


def _restarts(trainer: L.Trainer) -> bool:
    """Whether the run resumes from a checkpoint that was saved during a validation, which Lightning would skip."""
    loop = trainer.fit_loop.epoch_loop
    return loop.restarting and loop.restarted_on_last


def complete_validation(trainer: L.Trainer) -> None:
    """Validate after the last optimizer step whatever the interval, and round `val_check_interval` up to whole steps.

    A checkpoint saved within a step could not be resumed.
    """

    def due() -> bool:
        if not epoch_ends(trainer) and _restarts(trainer):
            return True
        stops = trainer.should_stop and may_stop_early(trainer)
        return between_steps(trainer) and (stops or run_ends(trainer))

    also_validate_when(trainer, due)
    window, interval = trainer.accumulate_grad_batches, trainer.val_check_batch
    if isinstance(interval, int) and interval % window:
        trainer.val_check_batch = interval + window - interval % window
