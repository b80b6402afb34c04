"""Dynamic fine-tuning: -log p, each token weighted by its own probability."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lit_probsft.objectives.base import Objective, TokenStats
from lit_probsft.objectives.power import power_mass


@dataclass(frozen=True)
class DFT(Objective):
    """f = -sg(p) log p; W = p (1 - p), so that DFT has the gradient of NegP and another loss value.

    sg is the stop-gradient. Wu et al. 2025, "On the Generalization of SFT" (arXiv 2508.05629).
    """

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 1/e, in nats."""
        return -tokens.detached_log_probs().exp() * tokens.log_probs

    @override
    def mass(self, low: float, high: float) -> float:
        return power_mass(1.0, low, high)
