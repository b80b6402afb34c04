"""The token weight of CHORD: smallest where the model is certain, for or against the token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp


@dataclass(frozen=True)
class ChordPhi(Objective):
    """f = -sg(p (1 - p)) log p; W = p (1 - p)^2. sg is the stop-gradient.

    The weight phi of the supervised part of CHORD, without its reinforcement learning. Zhang et al. 2025, "On-Policy RL
    Meets Off-Policy Experts" (arXiv 2508.11408).
    """

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to about 0.22, in nats."""
        log_probs = tokens.detached_log_probs()
        return -(log_probs.exp() * one_minus_exp(log_probs)) * tokens.log_probs
