"""How answers are drawn."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_probsft.errors import UserError, check_range
from lit_probsft.evaluation.generation.requests import GREEDY, Draw
from lit_probsft.parallel.seeds import LARGEST, derived_seed


@dataclass(frozen=True)
class Settings:
    """What is asked of a model, whatever the task.

    Args:
        n: answers to each question, from 1 to 100,000. More than one needs a temperature.
        temperature: of sampling; 0 is greedy.
        top_p: share of the probability mass that is sampled from, above 0 and at most 1.
        max_new_tokens: the most tokens of an answer; None takes each task's own number.
        seed: of sampling.
        system: a system message, in place of the one that a task may have.
        limit: the most questions of each task, from its first on; None takes all.
        greedy: one more answer to each question, without sampling, for the number `greedy`.
        template_options: further names that the chat template reads.

    Raises:
        UserError: names the field.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    seed: int = 0
    system: str | None = None
    limit: int | None = None
    greedy: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, most in (("n", 100_000), ("limit", math.inf), ("max_new_tokens", math.inf)):
            check_range(name, getattr(self, name), 1, most)
        check_range("seed", self.seed, 0, LARGEST)
        if not 0 <= self.temperature < math.inf:
            raise UserError("temperature", f"expected 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError("top_p", f"expected a number above 0 and at most 1, got {self.top_p}")
        if self.n > 1 and not self.temperature:
            raise UserError("n", f"expected 1 with temperature 0, where all answers are equal, got {self.n}")

    def draws(self, task: str, question: str) -> list[Draw]:
        """The answers to draw. Their seeds depend on nothing else, so that more questions or answers change none."""
        name = int(hashlib.sha256(json.dumps([task, question]).encode()).hexdigest(), 16)
        drawn = [Draw(sample, derived_seed(self.seed, name, sample), self.temperature) for sample in range(self.n)]
        extra = [Draw(GREEDY, 0, 0.0)] if self.greedy and self.temperature else []
        return [*drawn, *extra]
