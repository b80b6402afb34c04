"""Options for generating answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_probsft.errors import UserError


@dataclass(frozen=True)
class Generation:
    """How `predict` generates answers.

    Args:
        max_new_tokens: the most tokens of an answer, at least 1.
        temperature: of sampling; 0 is greedy.
        top_p: share of the probability mass that is sampled from (nucleus sampling), above 0 and at most 1.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError("model.generation.max_new_tokens", f"expected at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise UserError("model.generation.temperature", f"expected 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError("model.generation.top_p", f"expected a number above 0 and at most 1, got {self.top_p}")

    def as_kwargs(self) -> dict[str, Any]:
        """The arguments of transformers' `generate`."""
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {"max_new_tokens": self.max_new_tokens, **(sampling if self.temperature else {"do_sample": False})}
