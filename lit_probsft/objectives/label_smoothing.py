"""Label smoothing: a target that gives some mass to every token of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats


@dataclass(frozen=True)
class LabelSmoothing(Objective):
    """Cross entropy against (1 - epsilon) onehot + epsilon / V; W = 1 - epsilon + epsilon / V - p.

    W is negative where the model is more certain than the smoothed target. Szegedy et al. 2016, "Rethinking the
    Inception Architecture"; equals torch's `label_smoothing`.

    Args:
        epsilon: mass spread over the vocabulary, 0 (NLL) to 1.
    """

    epsilon: float = 0.1

    needs = frozenset({"logits"})
    signed = True  # a token above the smoothed target is pushed down

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UserError("LabelSmoothing.epsilon", f"expected a number from 0 to 1, got {self.epsilon}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to infinity, in nats."""
        assert tokens.logits is not None
        # The mean over the vocabulary of -log p_j is logsumexp(z) - mean(z).
        spread = tokens.logits.logsumexp(-1) - tokens.logits.mean(-1)
        return (1 - self.epsilon) * -tokens.log_probs + self.epsilon * spread.to(tokens.log_probs.dtype)
