"""The Cayley trajectory: a power whose exponent rises with the token's own probability, and with the batch's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class Cayley(Objective):
    """f = (1 - p^alpha) / alpha, alpha = sg(m + (1 - m) p / (2 - p)), at least 0.001; W = p^alpha (1 - p).

    p / (2 - p) is the Cayley transform (1 - r) / (1 + r) of r = 1 - p; m is `floor` times the mean p of the last
    optimizer step. sg is the stop-gradient. Wang et al. 2026, "Gradients Must Earn Their Influence" (arXiv 2602.11424),
    whose code takes the mean of the micro-batch.

    Args:
        floor: factor of the batch's mean p, 0 (the token alone) to 1; 0.5 in the authors' code.
    """

    floor: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise UserError("Cayley.floor", f"expected a number from 0 to 1, got {self.floor}")

    @property
    def needs(self) -> frozenset[str]:
        """The batch's mean p, where the floor is not 0."""
        return frozenset({"batch_mean_p"} if self.floor else ())

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 1000."""
        assert tokens.batch_mean_p is not None or not self.floor
        mean = self.floor * (tokens.batch_mean_p or 0.0)
        p = tokens.detached_log_probs().exp()
        alpha = (mean + (1 - mean) * p / (2 - p)).clamp(min=1e-3)
        return one_minus_exp(alpha * tokens.log_probs) / alpha
