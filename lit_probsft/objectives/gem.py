"""GEM: takes probability from the tokens that compete with the target, and leaves the tail alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats


@dataclass(frozen=True)
class GEM(Objective):
    """f = -log p + sum over the vocabulary of sg(q) log p, q = softmax(z / beta) of the logits z; W = 1 - q_y.

    The gradient on the logits is q - onehot, that of beta times NLL at temperature beta; beta = 1 has the gradient of
    NLL. GEM keeps more entropy than NLL. sg is the stop-gradient. Li et al. 2025, "Preserving Diversity in Supervised
    Fine-Tuning of Large Language Models" (arXiv 2408.16673), with the linear h.

    Args:
        beta: temperature of q, above 0 and at most 1; 0.7 in the authors' code.
    """

    beta: float = 0.7

    needs = frozenset({"logits"})

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise UserError("GEM.beta", f"expected a temperature above 0 and at most 1, got {self.beta}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), any real number, in nats."""
        assert tokens.logits is not None
        rivals = (tokens.detached_logits() / self.beta).softmax(-1)
        return (rivals * tokens.logits.log_softmax(-1)).sum(-1) - tokens.log_probs
