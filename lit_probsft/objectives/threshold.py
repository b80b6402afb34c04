"""A hard threshold for any objective: only tokens with p in an interval count."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, Wrapper
from lit_probsft.objectives.power import NLL


@dataclass(frozen=True)
class Threshold(Wrapper):
    """f(p) 1{min_prob <= p <= max_prob}; W is the base's inside the interval and 0 outside.

    HT(I) of Li et al. 2025 (arXiv 2510.00526). The interval is closed. log p is compared in fp32: bf16 has no value
    between .996 and 1, and a quantile of a strong model may be .99998. The comparison carries no gradient. The step is
    still divided by the number of all supervised tokens, unless the module has `normalize: kept`.

    Args:
        base: the objective inside the interval.
        min_prob: lower bound, 0 to 1.
        max_prob: upper bound, min_prob to 1.
    """

    base: Objective = field(default_factory=NLL)
    min_prob: float = 0.0
    max_prob: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_prob <= self.max_prob <= 1:
            values = f"min_prob = {self.min_prob}, max_prob = {self.max_prob}"
            raise UserError("Threshold", f"expected 0 <= min_prob <= max_prob <= 1, got {values}")

    @property
    def interval(self) -> tuple[float, float]:
        """The intersection with the base's interval."""
        low = max(self.base.interval[0], self.min_prob)
        return (low, max(low, min(self.base.interval[1], self.max_prob)))

    def inside(self, log_probs: Tensor) -> Tensor:
        """(N,), bool: whether p is in [min_prob, max_prob]."""
        edges = [math.log(p) if p > 0 else -math.inf for p in (self.min_prob, self.max_prob)]
        low, high = map(float, torch.tensor(edges, dtype=torch.float32))  # Python floats hold fp32 values exactly
        log_probs = log_probs.detach().float()
        return (log_probs >= low) & (log_probs <= high)

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), the base's value inside the interval and 0 outside."""
        inside = self.inside(tokens.detached_log_probs())
        if "logits" not in self.needs:
            # Outside, the base sees p = 1/2: where it is infinite, its gradient would become NaN and not zero.
            tokens = tokens.replace(log_probs=torch.where(inside, tokens.log_probs, -math.log(2)))
        return torch.where(inside, self.base.loss(tokens), 0.0)

    def mass(self, low: float, high: float) -> float:
        """Integral of the base's W over the part of [low, high] inside the interval."""
        low, high = max(low, self.interval[0]), min(high, self.interval[1])
        return self.base.mass(low, high) if high > low else 0.0
