"""A hard threshold around any objective: only tokens whose probability lies in an interval are trained on."""

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
    """f(p) 1{min_prob <= p <= max_prob}, the paper's HT(I); W is the base's weight inside the interval and 0 outside.

    The interval is closed and is compared in log space in fp32: bf16 has no value between .996 and 1, and a quantile of
    a strong model may be .99998. The comparison carries no gradient. What a step is divided by does not change with the
    number of tokens that survive, unless the module is told to `normalize: kept`.

    Args:
        base: the objective inside the interval.
        min_prob: lower end, 0 to 1.
        max_prob: upper end, min_prob to 1.
    """

    base: Objective = field(default_factory=NLL)
    min_prob: float = 0.0
    max_prob: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_prob <= self.max_prob <= 1:
            raise UserError(
                "Threshold",
                f"expected 0 <= min_prob <= max_prob <= 1, got min_prob = {self.min_prob}, max_prob = {self.max_prob}",
            )

    @property
    def interval(self) -> tuple[float, float]:
        """The part of the base's interval that lies in this one."""
        low = max(self.base.interval[0], self.min_prob)
        return (low, max(low, min(self.base.interval[1], self.max_prob)))

    def inside(self, log_probs: Tensor) -> Tensor:
        """(N,), bool: is p in [min_prob, max_prob]?"""
        log_probs = log_probs.detach().float()
        low = torch.tensor(math.log(self.min_prob) if self.min_prob > 0 else -math.inf, dtype=torch.float32)
        high = torch.tensor(math.log(self.max_prob) if self.max_prob > 0 else -math.inf, dtype=torch.float32)
        # Compared as Python floats, which hold an fp32 value exactly: no tensor is moved to the device.
        return (log_probs >= low.item()) & (log_probs <= high.item())

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), the base's range, and 0 outside the interval."""
        inside = self.inside(tokens.detached_log_probs())
        if "logits" not in self.needs:
            # A harmless p outside, so that a base that is infinite there gives a zero gradient rather than NaN.
            tokens = tokens.replace(log_probs=torch.where(inside, tokens.log_probs, -math.log(2)))
        return torch.where(inside, self.base.loss(tokens), 0.0)

    def mass(self, low: float, high: float) -> float:
        """Integral of W from `low` to `high`: the base's, over what of it lies in the interval."""
        low, high = max(low, self.interval[0]), min(high, self.interval[1])
        return self.base.mass(low, high) if high > low else 0.0
