"""Token-adaptive loss reweighting: NLL with less weight on improbable tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats


@dataclass(frozen=True)
class TALR(Objective):
    """f = -sg(w) log p, w = max(p^(1 / tau), floor); W = w (1 - p).

    sg is the stop-gradient. Lin et al. 2025, "SFT Doesn't Always Hurt General Capabilities" (arXiv 2509.20758): weights
    proportional to p^(1 / tau) solve an entropy-regularized problem, and tau follows the loss of the batch. Here the
    weights are not divided by their sum, and the value of the floor is this project's.

    Args:
        tau: above 0, in nats; 0 means the mean NLL of the previous optimizer step (w is 1 before the first step).
        floor: smallest weight, 0 to 1.
    """

    tau: float = 0.0
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.tau < math.inf:
            raise UserError("TALR.tau", f"expected a finite number, 0 or more, got {self.tau}")
        if not 0 <= self.floor <= 1:
            raise UserError("TALR.floor", f"expected a number from 0 to 1, got {self.floor}")

    @property
    @override
    def needs(self) -> frozenset[str]:
        return frozenset() if self.tau else frozenset({"batch_nll"})

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to infinity, in nats."""
        tau = self.tau or tokens.batch_nll
        if not tau:
            return -tokens.log_probs
        return -(tokens.detached_log_probs() / tau).exp().clamp(min=self.floor) * tokens.log_probs
