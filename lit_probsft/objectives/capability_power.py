"""Powers whose exponent follows from how much the model knows, before or during training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Capability, Objective, TokenStats
from lit_probsft.objectives.power import Power


@dataclass(frozen=True)
class CapabilityPower(Objective):
    """`Power` with the constant alpha = p0 / (1 - p0), where p0 is the mean p of the training tokens before training.

    This puts the peak of W, alpha / (1 + alpha), at p0. A rule of this project, tried on tiny models only.

    Args:
        source: a capability.json or its run's folder, which has p0; by default p0 is measured before the first step.
        max_alpha: upper bound of alpha, above 0.
    """

    source: str = ""
    max_alpha: float = 10.0

    needs = frozenset({"capability"})

    def __post_init__(self) -> None:
        if not 0 < self.max_alpha < 1e38:
            raise UserError("CapabilityPower.max_alpha", f"expected a finite number above 0, got {self.max_alpha}")

    @override
    def fitted(self, capability: Capability) -> Power:
        p = capability.mean_prob
        return Power(self.max_alpha if p >= 1 else min(p / (1 - p), self.max_alpha))

    @override
    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
        assert tokens.capability is not None
        return {"alpha": self.fitted(tokens.capability).alpha}

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), as `Power` with that alpha."""
        assert tokens.capability is not None
        return self.fitted(tokens.capability).loss(tokens)


@dataclass(frozen=True)
class RunningPower(Objective):
    """`Power` with alpha = m^exponent, where m is a running mean of p: it starts at p0, the mean p before training, and
    each optimizer step makes it .9 m + .1 times the mean p of the step's tokens.

    It acts like NLL while the model knows little, and trusts the model more as the model learns. A rule of this
    project, picked among about eleven on tiny models: its advantage there is exploratory.

    Args:
        exponent: 1 for alpha = m. With 2 alpha rises later, which costs less on clean data that takes few steps.
        source: a capability.json or its run's folder, which has p0; by default p0 is measured before the first step.
    """

    exponent: float = 1.0
    source: str = ""

    needs = frozenset({"running_mean_p"})

    def __post_init__(self) -> None:
        if not 0 < self.exponent < 1e3:
            raise UserError("RunningPower.exponent", f"expected a number above 0 and below 1000, got {self.exponent}")

    @override
    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
        assert tokens.running_mean_p is not None
        return {"alpha": tokens.running_mean_p**self.exponent}

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), as `Power` with the current alpha."""
        return Power(self.logged_values(tokens)["alpha"]).loss(tokens)
