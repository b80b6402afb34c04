"""Powers whose exponent follows from how much the model knows: before training, or while it learns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Capability, Objective, TokenStats
from lit_probsft.objectives.power import Power


@dataclass(frozen=True)
class CapabilityPower(Objective):
    """`Power` with alpha = p0 / (1 - p0), p0 the mean p over the training tokens before training; a constant.

    So the peak of W, alpha / (1 + alpha), lies at p0. No paper's: a rule of this project, tried on tiny models only.

    Args:
        source: the capability.json, or its run's folder, that tells p0; by default it is measured at the start.
        max_alpha: largest alpha, above 0.
    """

    source: str = ""
    max_alpha: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.max_alpha < 1e38:
            raise UserError("CapabilityPower.max_alpha", f"expected a finite number above 0, got {self.max_alpha}")

    @property
    def needs(self) -> frozenset[str]:
        """The capability."""
        return frozenset({"capability"})

    def fitted(self, capability: Capability) -> Power:
        """The power in numbers."""
        p = capability.mean_prob
        return Power(self.max_alpha if p >= 1 else min(p / (1 - p), self.max_alpha))

    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
        """Alpha."""
        assert tokens.capability is not None
        return {"alpha": self.fitted(tokens.capability).alpha}

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), as `Power` with that alpha."""
        assert tokens.capability is not None
        return self.fitted(tokens.capability).loss(tokens)


@dataclass(frozen=True)
class RunningPower(Objective):
    """`Power` with alpha = m^exponent, m the running mean of p: p0 before training, then .9 m + .1 times the mean p of
    each optimizer step's tokens.

    It learns like NLL while the model knows little and leans on the model as that learns. No paper's: a rule of this
    project, picked among about eleven on tiny models, so that its advantage there is exploratory.

    Args:
        exponent: 1 for alpha = m; 2 rises later, which cost less on clean data that is learnt in few steps.
        source: the capability.json, or its run's folder, that tells p0; by default it is measured at the start.
    """

    exponent: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.exponent < 1e3:
            raise UserError("RunningPower.exponent", f"expected a number above 0 and below 1000, got {self.exponent}")

    @property
    def needs(self) -> frozenset[str]:
        """The running mean of p."""
        return frozenset({"running_mean_p"})

    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
        """Alpha."""
        assert tokens.running_mean_p is not None
        return {"alpha": tokens.running_mean_p**self.exponent}

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), as `Power` with the alpha of now."""
        return Power(self.logged_values(tokens)["alpha"]).loss(tokens)
