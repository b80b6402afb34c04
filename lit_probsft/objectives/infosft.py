"""Information-aware weights: largest for tokens of medium probability, zero for nearly certain ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class InfoSFT(Objective):
    """f = -sg(w) log p, w = p max(0, 1 - logit(p) / logit(max_prob)), sg = stop-gradient; W = w (1 - p).

    Sabbaghi et al. 2026, "InfoSFT" (arXiv 2605.14967), normalized as in the authors' code.

    Args:
        max_prob: tokens with this p or more have no weight; above 0.5 and below 1, 0.93 in the authors' code.
    """

    max_prob: float = 0.93

    def __post_init__(self) -> None:
        if not 0.5 < self.max_prob < 1:
            raise UserError("InfoSFT.max_prob", f"expected a probability above 0.5 and below 1, got {self.max_prob}")

    @property
    @override
    def interval(self) -> tuple[float, float]:
        return (0.0, self.max_prob)

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to about 0.5, in nats."""
        log_probs = tokens.detached_log_probs()
        logit = log_probs - one_minus_exp(log_probs).log()
        room = (1 - logit / (math.log(self.max_prob) - math.log1p(-self.max_prob))).clamp(min=0)
        return -(log_probs.exp() * room) * tokens.log_probs
