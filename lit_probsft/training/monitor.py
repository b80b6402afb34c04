"""The metric by which a run compares its checkpoints."""

from __future__ import annotations

import math

import lightning as L

from lit_probsft.training.trainer_state import validation_set

VAL_NLL = "val/nll"


class Monitor:
    """val/nll; the lowest is the best. A subclass watches another metric.

    Attributes:
        name: of the metric, as the loggers have it.
        higher_is_better: whether the highest value is the best.
    """

    name = VAL_NLL
    higher_is_better = False

    def value(self, trainer: L.Trainer) -> float | None:
        """The metric after the last optimizer step; None if it was not measured after that step."""
        value = trainer.callback_metrics.get(self.name) if trainer.validating else None
        return None if value is None else float(value)

    def measured_on(self, trainer: L.Trainer) -> str | None:
        """Names what the metric is measured on. Values on different data cannot be compared."""
        return validation_set(trainer)

    @property
    def worst(self) -> float:
        """A value that every other one improves on."""
        return -math.inf if self.higher_is_better else math.inf

    def improves(self, value: float, best: float) -> bool:
        """Whether a value is better than the best so far."""
        return value > best if self.higher_is_better else value < best
