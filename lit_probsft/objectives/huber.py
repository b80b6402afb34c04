"""Huber's loss of 1 - p: quadratic near p = 1, linear below."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class Huber(Objective):
    """f = r^2 / 2 if r = 1 - p is at most delta, else delta (r - delta / 2); W = min(r, delta) p r.

    Below p = 1 - delta it is delta times NegP plus a constant; delta = 1 gives r^2 / 2 everywhere. Huber 1964, "Robust
    Estimation of a Location Parameter", applied to 1 - p.

    Args:
        delta: the value of 1 - p above which the loss is linear, above 0 and at most 1.
    """

    delta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 1:
            raise UserError("Huber.delta", f"expected a number above 0 and at most 1, got {self.delta}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to delta (1 - delta / 2)."""
        gap = one_minus_exp(tokens.log_probs)
        return torch.where(gap <= self.delta, gap.square() / 2, self.delta * (gap - self.delta / 2))
