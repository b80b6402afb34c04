"""Proximal fine-tuning: a token is learnt until it is so many times as likely as before."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats


@dataclass(frozen=True)
class PSFT(Objective):
    """f = -min(p / q, 1 + clip), q the token's p under a frozen reference; W = p / q (1 - p) up to the clip, then 0.

    PPO's clipped ratio with the advantage 1, whose lower end never binds. Zhu et al. 2025, "Proximal Supervised
    Fine-Tuning" (arXiv 2508.17784); the clip of 0.28 is that of the authors' recipe. They renew the reference with
    every batch, of which they take several steps; here it is the model that training began with, so that the clip
    bounds the whole way.

    Args:
        clip: by how much the ratio may exceed 1, above 0.
    """

    clip: float = 0.28

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf:
            raise UserError("PSFT.clip", f"expected a finite number above 0, got {self.clip}")

    @property
    def needs(self) -> frozenset[str]:
        """Log p of the targets under the reference."""
        return frozenset({"reference_log_probs"})

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), -(1 + clip) to 0."""
        assert tokens.reference_log_probs is not None
        # Clipped before exp: a ratio beyond numbers would give NaN for a gradient.
        return -(tokens.log_probs - tokens.reference_log_probs).clamp(max=math.log1p(self.clip)).exp()
