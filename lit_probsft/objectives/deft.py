"""Dynamic entropy fine-tuning: a power whose exponent is how concentrated the distribution is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class DEFT(Objective):
    """f = (1 - p^alpha) / alpha with alpha = sg(collision), the sum of all squared probabilities; W = p^alpha (1 - p).

    Near NLL where the model is unsure, near NegP where it is sure, of whatever token. sg is the stop-gradient. Wang et
    al. 2026, "Gradients Must Earn Their Influence" (arXiv 2602.11424).
    """

    @property
    def needs(self) -> frozenset[str]:
        """The collision probability."""
        return frozenset({"collision"})

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to V."""
        assert tokens.collision is not None
        return one_minus_exp(tokens.collision * tokens.log_probs) / tokens.collision
