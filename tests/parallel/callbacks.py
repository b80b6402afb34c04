"""Callbacks for configurations in tests."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning as L


class Stops(L.Callback):
    """Sends SIGTERM to its own process after an optimizer step, as a scheduler would.

    Args:
        step: the number of steps before the signal.
        rank: the rank that gets it.
    """

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)
