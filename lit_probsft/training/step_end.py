"""The end of an optimizer step: its row of metrics is logged first, then the run may be saved or stopped."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_probsft.training.lightning_internals import after_micro_batches, between_steps, log_step, step_is_logged
from lit_probsft.training.trainer_state import run_ends


class StepEnd(Callback):
    """A callback that saves or stops after optimizer steps.

    Lightning logs a step after all callbacks are done with it. The row of a step whose checkpoint is already saved
    would be lost if the run ended in between, because a resumed run does not repeat the step. Therefore `on_step_end`
    is called after the row is logged, with the state that `on_train_batch_end` has.
    """

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called on all ranks after each optimizer step."""


def end_steps(trainer: L.Trainer) -> None:
    """Log every `log_every_n_steps`-th step, the first and the last one; then call `on_step_end` of the callbacks."""

    def end() -> None:
        if not between_steps(trainer):
            return
        if step_is_logged(trainer) or trainer.global_step == 1 or run_ends(trainer):
            log_step(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepEnd):
                callback.on_step_end(trainer, trainer.lightning_module)

    after_micro_batches(trainer, end)
