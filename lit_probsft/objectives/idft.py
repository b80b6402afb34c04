"""In-distribution fine-tuning: a token counts as far as the model itself could have generated it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats


@dataclass(frozen=True)
class IDFT(Objective):
    """f = -p^gamma log p, gamma = sg(exp(-(log p + entropy) / beta)) clamped; W = p^gamma (1 + gamma log p) (1 - p).

    log p + entropy has mean 0 over the model's own samples. p^gamma has a gradient, as in the authors' code, so W is
    negative below p = exp(-1 / gamma). sg is the stop-gradient. Zhang et al. 2026, "Towards On-Policy SFT" (arXiv
    2602.12222); their code also moves gamma from 1 to this value early in training.

    Args:
        beta: temperature of gamma, above 0.
        min_gamma: lower bound of gamma, 0 or more.
        max_gamma: upper bound of gamma, at least `min_gamma`.
    """

    beta: float = 1.0
    min_gamma: float = 0.1
    max_gamma: float = 2.0

    needs = frozenset({"entropy"})
    signed = True  # an improbable token is pushed down

    def __post_init__(self) -> None:
        if not (0 < self.beta < math.inf and 0 <= self.min_gamma <= self.max_gamma < math.inf):
            raise UserError("IDFT", f"expected beta > 0 and 0 <= min_gamma <= max_gamma, all finite, got {self}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 1 / (e min_gamma), in nats."""
        assert tokens.entropy is not None
        surplus = tokens.detached_log_probs() + tokens.entropy
        gamma = (-surplus / self.beta).exp().clamp(self.min_gamma, self.max_gamma)
        return -(gamma * tokens.log_probs).exp() * tokens.log_probs
