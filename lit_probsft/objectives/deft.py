"""Dynamic entropy fine-tuning: a power whose exponent is the concentration of the distribution."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class DEFT(Objective):
    """f = (1 - p^alpha) / alpha, alpha = sg(collision), the sum of all squared probabilities; W = p^alpha (1 - p).

    Close to NLL where the model is uncertain and to NegP where it is certain, of whatever token. sg is the
    stop-gradient. Wang et al. 2026, "Gradients Must Earn Their Influence" (arXiv 2602.11424).
    """

    needs = frozenset({"collision"})

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to V."""
        assert tokens.collision is not None
        return one_minus_exp(tokens.collision * tokens.log_probs) / tokens.collision
