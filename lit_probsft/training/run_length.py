"""The number of optimizer steps of a run and of an epoch."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from lit_probsft.errors import UserError


def total_steps(trainer: L.Trainer) -> int:
    """Optimizer steps of the whole run, from the data's plan.

    Raises:
        UserError: neither the trainer nor the data limit the run.
    """
    in_epoch = steps_in_epoch(trainer)
    steps = trainer.max_steps if trainer.max_steps >= 0 else math.inf
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and in_epoch is not None:
        steps = min(steps, in_epoch * trainer.max_epochs)
    if math.isinf(steps):
        raise UserError("trainer", "expected max_steps, or max_epochs with an InstructionDataModule, got neither")
    return int(steps)


def steps_in_epoch(trainer: L.Trainer) -> int | None:
    """Optimizer steps of an epoch; None if the data module does not know.

    Raises:
        UserError: `limit_train_batches` is no multiple of `accumulate_grad_batches`.
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
            f"expected a multiple of accumulate_grad_batches ({window}), because a step is divided by all tokens of "
            f"its micro-batches, got {batches}",
        )
    return int(batches // window)
