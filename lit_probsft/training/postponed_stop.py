"""Stopping between optimizer steps only."""

from __future__ import annotations

import lightning as L

from lit_probsft.training.lightning_internals import between_steps


class PostponedStop:
    """Postpones a stop that is requested while micro-batches accumulate to the end of their optimizer step."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether the trainer stops after the present optimizer step."""

    def after_micro_batch(self, trainer: L.Trainer) -> None:
        """Take back a request within a step, repeat it at the end."""
        if trainer.should_stop and not between_steps(trainer):
            trainer.should_stop, self.wanted = False, True
        elif self.wanted and between_steps(trainer):
            trainer.should_stop, self.wanted = True, False
