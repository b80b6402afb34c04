"""The options of evaluation during training."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from lit_probsft.errors import UserError, check_range
from lit_probsft.parallel.seeds import LARGEST
from lit_probsft.training.intervals import Every


@dataclass(frozen=True)
class EvaluationOptions:
    """Which tasks a run evaluates its model on, and when.

    The model answers the questions before the first step, at an interval, and after the last step.

    Args:
        tasks: names of tasks, such as `gsm8k,math500`, or a list of names and classes. None or an empty list does not
            evaluate.
        every: `validation` evaluates at each validation; an integer is optimizer steps between evaluations, a number
            between 0 and 1 a share of an epoch, `epoch` one epoch.
        limit: the most questions of each task; None takes all.
        n: answers to each question, at least 1. More than one needs a temperature.
        temperature: of sampling; 0 is greedy.
        top_p: share of the probability mass that is sampled from, above 0 and at most 1.
        max_new_tokens: the most tokens of an answer; None takes each task's own number.
        system: a system message in front of each question.
        seed: of sampling; None is the run's seed.
        data_dir: a folder with the tasks' files; without it they come from the hub.
        batch_tokens: the most tokens, of prompts and answers together, that are in memory at once; None takes the
            default of the device.
    """

    tasks: str | list[str | dict[str, Any]] | None = None
    every: int | float | Literal["validation", "epoch"] = "validation"
    limit: int | None = None
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    system: str | None = None
    seed: int | None = None
    data_dir: str | None = None
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        self.interval  # noqa: B018  checks it
        for name in ("limit", "n", "max_new_tokens", "batch_tokens"):
            check_range(f"evaluation.{name}", getattr(self, name), 1, math.inf)
        check_range("evaluation.seed", self.seed, 0, LARGEST)
        if not 0 <= self.temperature < math.inf:
            raise UserError("evaluation.temperature", f"expected 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError("evaluation.top_p", f"expected a number above 0 and at most 1, got {self.top_p}")
        if self.n > 1 and not self.temperature:
            raise UserError("evaluation.n", f"expected 1 with temperature 0, where all answers are equal, got {self.n}")
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if self.tasks is None and changed:
            problem = "expected evaluation.tasks with it (an empty list turns evaluation off), got none"
            raise UserError(f"evaluation.{changed[0]}", problem)

    @property
    def interval(self) -> Every | None:
        """The interval between evaluations; None if they follow the validations."""
        if self.every == "validation":
            return None
        return Every.of(self.every, "evaluation.every", words=("epoch", "validation"))
