"""The progress of a run for its user: progress bar and throughput."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from typing_extensions import override


def datamodule_of(trainer: L.Trainer) -> Any:
    """The data module of a trainer; Lightning's type does not declare it."""
    return trainer.datamodule  # type: ignore[attr-defined]


class ProgressBar(TQDMProgressBar):
    """Loss, NLL, mean p, learning rate and tokens per second; no version number.

    A run that resumes within an epoch continues its bar, which Lightning sets up at the start of an epoch only.
    """

    @override
    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        super().on_train_epoch_start(trainer, *args)
        bar = self.train_progress_bar
        if not bar.disable:
            bar.n = bar.initial = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            bar.refresh()

    @override
    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        short = {name.removeprefix("train/"): value for name, value in items.items()}
        return {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in short.items()}


class Throughput(Callback):
    """Logs `tokens_per_second` of all ranks between two logged steps; prompts count, padding does not.

    Excludes the time of validation and saving, and the first step, which includes warming up.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._started: float | None = None
        self.total_tokens = self.total_supervised = 0

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A batch carries the counts of its whole step on all ranks; they are added with the last micro-batch.
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

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"total_tokens": self.total_tokens, "total_supervised": self.total_supervised}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total_tokens, self.total_supervised = state_dict["total_tokens"], state_dict["total_supervised"]
