"""The token weight of CHORD: least where the model is sure, of the token or against it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class ChordPhi(Objective):
    """f = -sg(p (1 - p)) log p, sg the stop-gradient; W = p (1 - p)^2.

    Zhang et al. 2025, "On-Policy RL Meets Off-Policy Experts" (arXiv 2508.11408): the weight phi of its supervised
    part, whose mixture with reinforcement learning is not here.
    """

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to about 0.22, in nats."""
        log_probs = tokens.detached_log_probs()
        return -(log_probs.exp() * one_minus_exp(log_probs)) * tokens.log_probs
