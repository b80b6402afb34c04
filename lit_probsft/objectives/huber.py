"""Huber's loss of the gap 1 - p: squared where the model is nearly right, linear where it is not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class Huber(Objective):
    """f = r^2 / 2 for r = 1 - p up to delta, delta (r - delta / 2) beyond; W = min(r, delta) p r.

    delta times NegP where p is below 1 - delta, and half of the squared gap at delta = 1. Huber 1964, "Robust
    Estimation of a Location Parameter", applied to the gap.

    Args:
        delta: the gap from which on the loss is linear, above 0, at most 1.
    """

    delta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 1:
            raise UserError("Huber.delta", f"expected a number above 0, at most 1, got {self.delta}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to delta (1 - delta / 2)."""
        gap = one_minus_exp(tokens.log_probs)
        return torch.where(gap <= self.delta, gap.square() / 2, self.delta * (gap - self.delta / 2))
