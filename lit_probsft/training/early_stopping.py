"""Early stopping, exact over a resume."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.training.lightning_internals import check_after_validation
from lit_probsft.training.monitor import Monitor
from lit_probsft.training.run_length import total_steps
from lit_probsft.training.trainer_state import has_validation


@dataclass(frozen=True)
class StoppingOptions:
    """When a run ends before its last step.

    Args:
        patience: end after this many validations in a row without a better val/nll (or the metric that
            `checkpoints.best` names), at least 1; None never ends.
        min_delta: by how much the metric has to be better than the best so far to count as an improvement, 0 or more;
            for val/nll in nats.
    """

    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise UserError("early_stopping.patience", f"expected at least 1 validation, got {self.patience}")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise UserError("early_stopping.min_delta", f"expected 0 nats or more, got {self.min_delta}")
        if self.min_delta and self.patience is None:
            raise UserError(
                "early_stopping.min_delta", f"expected early_stopping.patience with it, got {self.min_delta}"
            )


class EarlyStop(EarlyStopping):
    """Lightning's `EarlyStopping`, which also knows why a run has stopped.

    Its counts are saved with the checkpoint of the same validation, so a resumed run stops where an uninterrupted one
    would. The patience is that of the present configuration: more of it lets a stopped run continue. Without patience
    the validations are counted all the same.

    Args:
        options: patience and threshold.
        others: the run's other callbacks. An `EarlyStopping` among them decides after a validation, before its
            checkpoint is written, and takes its patience from the configuration too when the run resumes.
        metric: the metric that has to improve. It is measured at each validation.
    """

    def __init__(
        self,
        options: StoppingOptions = StoppingOptions(),
        others: Sequence[Callback] = (),
        metric: Monitor = Monitor(),  # noqa: B008  has no state
    ) -> None:
        super().__init__(
            metric.name,
            options.min_delta,
            sys.maxsize if options.patience is None else options.patience,
            mode="max" if metric.higher_is_better else "min",
            strict=False,
            check_finite=False,
            check_on_train_epoch_end=False,
        )
        self._metric = metric
        self.best_step = 0
        self.already_stopped = False
        """Whether the run had stopped before it was resumed."""
        self._measured_on: str | None = None
        self._others = {other: other.patience for other in others if isinstance(other, EarlyStopping)}
        for other in self._others:
            check_after_validation(other)

    @property
    @override
    def state_key(self) -> str:
        return "EarlyStop"

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and self.patience < sys.maxsize and not has_validation(trainer):  # before the model is loaded
            problem = "expected data.validation or data.validation_fraction with it, to watch "
            raise UserError("early_stopping.patience", f"{problem}{self.monitor}, got no validation")

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        before, self._measured_on = self._measured_on, self._metric.measured_on(trainer)
        if before != self._measured_on:
            self.best_score, self.best_step, self.wait_count = torch.tensor(self._metric.worst), 0, 0
        for other, patience in self._others.items():
            other.patience = patience
        self.already_stopped = any(each.wait_count >= each.patience for each in (self, *self._others))
        trainer.should_stop = trainer.should_stop or self.already_stopped

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        before = self.best_score
        super().on_validation_end(trainer, pl_module)
        if self.best_score is not before:
            self.best_step = trainer.global_step

    def reason(self, trainer: L.Trainer) -> str | None:
        """Why the run ended before its last step; None if it did not."""
        if trainer.global_step >= total_steps(trainer):
            return None
        if self.wait_count >= self.patience:
            unit = "" if self._metric.higher_is_better else " nats"
            by = f" by more than {abs(self.min_delta):g}{unit}" if self.min_delta else ""
            validations = "1 validation" if self.wait_count == 1 else f"{self.wait_count} validations"
            best = f"best {self.best_score.item():.4g} at step {self.best_step}"
            return f"{self.monitor} has not improved{by} for {validations} ({best})"
        for other in self._others:
            if other.stopping_reason_message:
                return other.stopping_reason_message.removesuffix(" Signaling Trainer to stop.").rstrip(".")
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, Timer) and (callback.time_remaining() or 0) <= 0 for callback in callbacks):
            return "trainer.max_time is over"
        return "a callback stopped it"

    @override
    def state_dict(self) -> dict[str, Any]:
        best = self.best_score.item()
        return {"best": best, "best_step": self.best_step, "waited": self.wait_count, "of": self._measured_on}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = torch.tensor(state_dict["best"], dtype=torch.float64)
        # Exact, and in double only if the metric was: a GPU without double logs no such values, and compares none.
        self.best_score = best.float() if best.float() == best else best
        self.best_step, self.wait_count = state_dict["best_step"], state_dict["waited"]
        self._measured_on = state_dict["of"]
