"""What accompanies a run: progress, throughput, the guard against steps that are not finite, answers of `predict`."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_warn

from lit_probsft.errors import UserError
from lit_probsft.training.checkpoints import Checkpoints


def datamodule_of(trainer: L.Trainer) -> Any:
    """The data module of a trainer, which Lightning's types do not know."""
    return trainer.datamodule  # type: ignore[attr-defined]


class ProgressBar(TQDMProgressBar):
    """Loss, NLL, mean p, learning rate and tokens per second; no version number."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The bar's numbers, under short names."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        short = {name.removeprefix("train/"): value for name, value in items.items()}
        return {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in short.items()}


class Throughput(Callback):
    """Logs `tokens_per_second`: real tokens, prompts included and padding not, over all ranks, between two logged
    steps.

    Time spent in validation and saving is left out; the first step, which pays for warming up, too.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._started: float | None = None
        self.total_tokens = self.total_supervised = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it, count the batch."""
        # The plan knows what all ranks have done in this window; it is counted with its last micro-batch.
        complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        tokens = batch["window_length"] if complete else 0
        self.total_tokens += tokens
        self.total_supervised += batch["window_tokens"] if complete else 0
        if self._started is None or trainer.global_step <= 1:
            return
        self._tokens += tokens
        self._seconds += time.perf_counter() - self._started
        if complete and self._seconds > 0:
            pl_module.log("tokens_per_second", self._tokens / self._seconds, prog_bar=True)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._tokens, self._seconds = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """The totals go on after a resume."""
        return {"total_tokens": self.total_tokens, "total_supervised": self.total_supervised}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The totals go on after a resume."""
        self.total_tokens, self.total_supervised = state_dict["total_tokens"], state_dict["total_supervised"]


class NonFiniteGuard(Callback):
    """Ends the run after too many skipped optimizer steps in a row, with a checkpoint of the last good weights.

    A skipped step leaves weights and moments untouched, so the weights at that moment are the last good ones.
    """

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self._in_a_row = 0
        self._steps_seen = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        if trainer.global_step == self._steps_seen:
            return
        self._steps_seen = trainer.global_step
        skipped: Any = pl_module.last_step_skipped
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if self._in_a_row == 1:
            rank_zero_warn(f"optimizer step {trainer.global_step}: loss or gradient is not finite, the step is skipped")
        if self._in_a_row < self.limit:
            return
        where = ""
        for saver in trainer.checkpoint_callbacks:
            if isinstance(saver, Checkpoints):
                where = f"; the last good weights are in {saver.flush(trainer)}"
        raise UserError(
            "training",
            f"expected a finite loss and gradient, {self.limit} optimizer steps in a row had none "
            f"(up to step {trainer.global_step}): lower the learning rate, or look at the data of these steps{where}",
        )
