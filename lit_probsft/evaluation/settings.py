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
from lit_probsft.model.generation import check_sampling
from lit_probsft.parallel.seeds import LARGEST, derived_seed


@dataclass(frozen=True)
class Settings:
    """How many answers a model generates, and how, for every task.

    Args:
        n: answers to each question, from 1 to 100,000. More than one needs a temperature.
        temperature: 0 is greedy decoding.
        top_p: sample from the most probable tokens that hold this share of the mass, above 0 and at most 1.
        max_new_tokens: maximum length of an answer; None takes each task's own number.
        seed: for sampling.
        system: a system message; it replaces that of the task, if it has one.
        limit: at most this many questions of each task, see `chosen`; None takes all.
        greedy: one more answer to each question, without sampling, for the number `greedy`.
        template_options: options for the chat template.

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
        check_sampling(self.temperature, self.top_p)
        if self.n > 1 and not self.temperature:
            raise UserError("n", f"expected 1 with temperature 0, where all answers are equal, got {self.n}")

    def draws(self, task: str, question: str) -> list[Draw]:
        """The answers to draw. A seed depends on nothing else, so more questions or answers change no other."""
        name = int(hashlib.sha256(json.dumps([task, question]).encode()).hexdigest(), 16)
        drawn = [Draw(sample, derived_seed(self.seed, name, sample), self.temperature) for sample in range(self.n)]
        return drawn + [Draw(GREEDY, 0, 0.0)] * bool(self.greedy and self.temperature)
