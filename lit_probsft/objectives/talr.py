"""Token-adaptive loss reweighting: NLL, less where the model does not believe the token."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats


@dataclass(frozen=True)
class TALR(Objective):
    """f = -sg(w) log p, w = max(p^(1 / tau), floor); W = w (1 - p).

    sg is the stop-gradient. Lin et al. 2025, "SFT Doesn't Always Hurt General Capabilities" (arXiv 2509.20758), where
    weights proportional to p^(1 / tau) solve an entropy-regularized problem and tau follows the loss of the batch.
    They are not divided by their sum here, and the floor's value is this project's.

    Args:
        tau: above 0, in nats; 0 stands for the mean NLL of the last optimizer step (before the first one w is 1).
        floor: least weight, 0 to 1.
    """

    tau: float = 0.0
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.tau < math.inf:
            raise UserError("TALR.tau", f"expected a finite number, 0 or more, got {self.tau}")
        if not 0 <= self.floor <= 1:
            raise UserError("TALR.floor", f"expected a number from 0 to 1, got {self.floor}")

    @property
    def needs(self) -> frozenset[str]:
        """The mean NLL of the step before, where tau is not given."""
        return frozenset() if self.tau else frozenset({"batch_nll"})

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to infinity, in nats."""
        tau = self.tau or tokens.batch_nll
        if not tau:
            return -tokens.log_probs
        return -(tokens.detached_log_probs() / tau).exp().clamp(min=self.floor) * tokens.log_probs
