"""log(1 - p): the most prior-leaning objective of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class LogOneMinusP(Objective):
    """f = log(1 - p + eps); W = p (1 - p) / (1 - p + eps), which grows with p almost up to p = 1.

    Li et al. 2025 (arXiv 2510.00526).

    Args:
        eps: keeps the loss finite at p = 1, where it is log(eps); positive, 1e-3 in the paper's code.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise UserError("LogOneMinusP.eps", f"expected a positive finite number, got {self.eps}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), log(eps) at p = 1 to log(1 + eps) at p = 0, negative nearly everywhere."""
        return torch.log(self.eps + one_minus_exp(tokens.log_probs))
