"""Proximal fine-tuning: a token counts until its probability has grown by a given factor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats


@dataclass(frozen=True)
class PSFT(Objective):
    """f = -min(p / q, 1 + clip), q = p under a frozen reference; W = p / q (1 - p) up to the clip, then 0.

    PPO's clipped ratio with advantage 1; its lower bound never applies. Zhu et al. 2025, "Proximal Supervised
    Fine-Tuning" (arXiv 2508.17784). The authors renew the reference with every batch and take several steps on it. Here
    the reference is the model before training, so the clip bounds the change over the whole run.

    Args:
        clip: largest excess of the ratio over 1, above 0; 0.28 in the authors' recipe.
    """

    clip: float = 0.28

    needs = frozenset({"reference_log_probs"})

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf:
            raise UserError("PSFT.clip", f"expected a finite number above 0, got {self.clip}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), -(1 + clip) to 0."""
        assert tokens.reference_log_probs is not None
        # Clamp before exp: an infinite ratio would give a NaN gradient.
        return -(tokens.log_probs - tokens.reference_log_probs).clamp(max=math.log1p(self.clip)).exp()
