"""NLL in a trust region, linear in p below it: the least probable tokens do not pull hardest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class TrSFT(Objective):
    """f = -log p if p > alpha, else 1 - log alpha - p / alpha; W = min(1, p / alpha) (1 - p).

    Su et al. 2025, "Trust-Region Adaptive Policy Optimization" (arXiv 2512.17636); their code caps the factor 1 / p of
    NLL at 1 / alpha. It is also the partially Huberised cross entropy with tau = 1 / alpha of Menon et al. 2020, "Can
    Gradient Clipping Mitigate Label Noise?".

    Args:
        alpha: lower bound of the trust region, a probability above 0 and at most 1 (NegP); 0.1 in the authors' code.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 1e-30 <= self.alpha <= 1:
            raise UserError("TrSFT.alpha", f"expected a probability above 0 (1e-30) and at most 1, got {self.alpha}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 1 - log alpha, in nats."""
        edge = math.log(self.alpha)
        outside = one_minus_exp((tokens.log_probs - edge).clamp(max=0)) - edge
        return torch.where(tokens.log_probs > edge, -tokens.log_probs, outside)
