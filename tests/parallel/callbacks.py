"""Callbacks that a run is given by its configuration."""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning as L


class Stops(L.Callback):
    """Tells its own process to stop, as a scheduler would, when an optimizer step is done.

    Args:
        step: how many steps are done by then.
        rank: which of the ranks is told.
    """

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)
