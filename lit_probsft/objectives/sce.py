"""Symmetric cross entropy: NLL plus the cross entropy of the target under the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class SCE(Objective):
    """f = -alpha log p - beta A (1 - p), where A replaces log 0; W = (1 - p) (alpha - beta A p).

    The reverse cross entropy of a one-hot target is -A (1 - p). SCE is alpha times Poly1 with epsilon =
    -beta A / alpha. Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels" (arXiv
    1908.06112); the defaults are from the authors' code for CIFAR-10.

    Args:
        alpha: factor of NLL, above 0.
        beta: factor of the reverse cross entropy, 0 or more.
        log_zero: A, below 0, in nats; log 1e-4 in the authors' code.
    """

    alpha: float = 0.1
    beta: float = 1.0
    log_zero: float = math.log(1e-4)

    def __post_init__(self) -> None:
        if not (0 < self.alpha < math.inf and 0 <= self.beta < math.inf and -math.inf < self.log_zero < 0):
            raise UserError("SCE", f"expected alpha > 0, beta >= 0 and log_zero < 0, all finite, got {self}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to infinity, in nats."""
        return -self.alpha * tokens.log_probs - self.beta * self.log_zero * one_minus_exp(tokens.log_probs)
