"""Ending a run when validation no longer improves: our way by option, Lightning's by callback. Both survive a
resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer

from lit_probsft.errors import UserError
from lit_probsft.training.checkpoints import MONITOR
from lit_probsft.training.intervals import total_steps, validation_set


@dataclass(frozen=True)
class StoppingOptions:
    """When a run ends before its last step.

    Args:
        patience: validations in a row in which val/nll has not fallen, at least 1; None never stops.
        min_delta: nats by which it has to fall below the best before to count as fallen, 0 or more.
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


class EarlyStop(Callback):
    """Stops at a validation, on all ranks, and knows why a run has stopped.

    What it has counted is in the checkpoint of that validation, so that a run that goes on stops where one would that
    never was interrupted; one that has been stopped goes on only with more patience.

    Args:
        options: when.
        others: the run's other callbacks. Lightning's `EarlyStopping` among them decides after a validation, before its
            checkpoint is written, and keeps the patience that it is given here when the run goes on.
    """

    def __init__(self, options: StoppingOptions = StoppingOptions(), others: Sequence[Callback] = ()) -> None:
        self.options = options
        self.best, self.best_step, self.waited = math.inf, 0, 0
        self._of: str | None = None
        self.nothing_left = False
        """Had it been stopped before it was to go on?"""
        self._others = {other: other.patience for other in others if isinstance(other, EarlyStopping)}
        for other in self._others:
            if other._check_on_train_epoch_end is None and other.monitor.startswith("val/"):
                other._check_on_train_epoch_end = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse, before the model is loaded, what would never stop."""
        report = getattr(getattr(trainer, "datamodule", None), "report", None)
        nothing = trainer.limit_val_batches == 0 or (report is not None and "validation" not in report)
        if stage == "fit" and self.options.patience is not None and nothing:
            raise UserError(
                "early_stopping.patience",
                "expected data.validation or data.validation_fraction with it, whose "
                f"{MONITOR} is watched, got no validation",
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """This run's patience counts, not that of the checkpoint; and nothing that was counted on another set."""
        of, self._of = self._of, validation_set(trainer)
        if of != self._of:
            self.best, self.best_step, self.waited = math.inf, 0, 0
        for other, patience in self._others.items():
            other.patience = patience
        self.nothing_left = self._exhausted or any(other.wait_count >= other.patience for other in self._others)
        trainer.should_stop = trainer.should_stop or self.nothing_left

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        nll = float(trainer.callback_metrics.get(MONITOR, math.nan))
        if nll < self.best - self.options.min_delta:
            self.best, self.best_step, self.waited = nll, trainer.global_step, 0
        else:
            self.waited += 1
        if self.options.patience is not None:
            stop = trainer.strategy.reduce_boolean_decision(self._exhausted, all=False)
            trainer.should_stop = trainer.should_stop or stop

    @property
    def _exhausted(self) -> bool:
        return self.options.patience is not None and self.waited >= self.options.patience

    def reason(self, trainer: L.Trainer) -> str | None:
        """Why a run has ended before its last step; None where it has not."""
        if trainer.global_step >= total_steps(trainer):
            return None
        if self._exhausted:
            by = f" by more than {self.options.min_delta:g} nats" if self.options.min_delta else ""
            best = f"the last fall was to {self.best:.4g} nats after step {self.best_step}"
            return f"{MONITOR} has not fallen{by} in {_validations(self.waited)}; {best}"
        for other in self._others:
            if other.stopping_reason_message:
                return other.stopping_reason_message.removesuffix(" Signaling Trainer to stop.").rstrip(".")
        if any(isinstance(c, Timer) and (c.time_remaining() or 0) <= 0 for c in _callbacks(trainer)):
            return "trainer.max_time was over"
        return "a callback asked for it"

    def state_dict(self) -> dict[str, Any]:
        """What it has counted."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited, "of": self._of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What it has counted."""
        self.best, self.best_step, self.waited = (state_dict[name] for name in ("best", "best_step", "waited"))
        self._of = state_dict["of"]


def _validations(number: int) -> str:
    return f"{number} validations" if number > 1 else "a validation"


def _callbacks(trainer: L.Trainer) -> list[Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
