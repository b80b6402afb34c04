"""The options of evaluation during training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from lit_probsft.errors import UserError, check_range, errors_within
from lit_probsft.evaluation.settings import Settings
from lit_probsft.parallel.seeds import run_seed
from lit_probsft.training.intervals import Every


@dataclass(frozen=True)
class EvaluationOptions:
    """The tasks that a run evaluates its model on, and when.

    The model answers the questions before the first step, at an interval, and after the last step.

    Args:
        tasks: names of tasks, such as `gsm8k,math500`, or a list of names and classes; an empty list is none.
        every: `validation` evaluates at each validation, `epoch` after each epoch, an integer after so many optimizer
            steps, a number between 0 and 1 after that share of an epoch.
        limit: at most this many questions of each task; None takes all.
        n: answers to each question, at least 1. More than one needs a temperature.
        temperature: 0 is greedy decoding.
        top_p: sample from the most probable tokens that hold this share of the mass, above 0 and at most 1.
        max_new_tokens: maximum length of an answer; None takes each task's own number.
        system: a system message; it replaces that of the task, if it has one.
        seed: for sampling; None takes the run's seed.
        data_dir: a folder with the rows of the tasks; None takes them from the hub.
        batch_tokens: maximum positions in the cache of a batch; None takes the default of the device.
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
        self.interval  # noqa: B018  refuses what is not an interval
        with errors_within("evaluation"):
            check_range("batch_tokens", self.batch_tokens, 1, float("inf"))
            self.settings()
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if self.tasks is None and changed:
            problem = "expected evaluation.tasks with it (an empty list turns evaluation off), got none"
            raise UserError(f"evaluation.{changed[0]}", problem)

    @property
    def interval(self) -> Every | None:
        """The interval between evaluations; None if they follow the validations."""
        return None if self.every == "validation" else Every.of(self.every, "evaluation.every")

    def settings(self) -> Settings:
        """How the answers are drawn, with the run's seed where the options have none."""
        names = ("limit", "n", "temperature", "top_p", "max_new_tokens", "system")
        return Settings(**{name: getattr(self, name) for name in names}, seed=run_seed(self.seed))
