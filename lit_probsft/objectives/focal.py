"""The focal loss: NLL with less weight on what the model already knows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class Focal(Objective):
    """f = -(1 - p)^gamma log p; W = (1 - p)^gamma (1 - p - gamma p log p). More prior-averse than NLL.

    Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv 1708.02002).

    Args:
        gamma: 0 (NLL) or more; 2 in the paper.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise UserError("Focal.gamma", f"expected a finite number, 0 or more, got {self.gamma}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to infinity, in nats."""
        # Without the clamp the slope at p = 1 is infinite for gamma below 1.
        complement = one_minus_exp(tokens.log_probs).clamp(min=1e-30)
        return -(complement**self.gamma) * tokens.log_probs
