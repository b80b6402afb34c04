"""The Cayley trajectory: a power whose exponent rises with the token's and the batch's probability."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class Cayley(Objective):
    """f = (1 - p^alpha) / alpha, alpha = sg(m + (1 - m) p / (2 - p)), at least 0.001; W = p^alpha (1 - p).

    p / (2 - p) is the Cayley transform (1 - r) / (1 + r) of r = 1 - p. m is `floor` times the mean p of the previous
    optimizer step. sg is the stop-gradient. Wang et al. 2026, "Gradients Must Earn Their Influence" (arXiv
    2602.11424); their code takes the mean over the micro-batch.

    Args:
        floor: factor of the mean p, 0 (alpha depends on the token alone) to 1; 0.5 in the authors' code.
    """

    floor: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise UserError("Cayley.floor", f"expected a number from 0 to 1, got {self.floor}")

    @property
    @override
    def needs(self) -> frozenset[str]:
        return frozenset({"batch_mean_p"} if self.floor else ())

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 1000."""
        assert tokens.batch_mean_p is not None or not self.floor
        mean = self.floor * (tokens.batch_mean_p or 0.0)
        p = tokens.detached_log_probs().exp()
        alpha = (mean + (1 - mean) * p / (2 - p)).clamp(min=1e-3)
        return one_minus_exp(alpha * tokens.log_probs) / alpha
