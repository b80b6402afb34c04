"""Poly-1: NLL with another coefficient on the first term of its series."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class Poly1(Objective):
    """f = -log p + epsilon (1 - p); W = (1 - p) (1 + epsilon p).

    Between NLL (epsilon = 0) and NegP (epsilon to infinity). Leng et al. 2022, "PolyLoss" (arXiv 2204.12511).

    Args:
        epsilon: -1 or more; 2 in the paper, for ImageNet.
    """

    epsilon: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= -1):
            raise UserError("Poly1.epsilon", f"expected a finite number, -1 or more, got {self.epsilon}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to infinity, in nats."""
        return -tokens.log_probs + self.epsilon * one_minus_exp(tokens.log_probs)
