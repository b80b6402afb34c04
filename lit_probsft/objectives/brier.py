"""The Brier score: the squared distance of the distribution from the target."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class Brier(Objective):
    """f = (1 - p)^2 + the sum of the other tokens' squared probabilities; W = 2 p f.

    A proper scoring rule like NLL, but bounded. Brier 1950, "Verification of Forecasts Expressed in Terms of
    Probability".
    """

    needs = frozenset({"logits"})

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 2."""
        assert tokens.logits is not None
        assert tokens.labels is not None
        others = tokens.logits.log_softmax(-1).exp().scatter(-1, tokens.labels.unsqueeze(-1), 0.0)
        return one_minus_exp(tokens.log_probs).square() + others.square().sum(-1)
