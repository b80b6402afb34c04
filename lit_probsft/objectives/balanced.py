"""Any objective, scaled to a given mean gradient weight: objectives then differ in shape and not in step size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, Wrapper
from lit_probsft.objectives.power import NLL


@dataclass(frozen=True)
class Balanced(Wrapper):
    """c f with c = target / mean_weight; W is c times the base's.

    By default the mean is over p uniform on [0, 1], where NLL has 1/2. c is a constant. To scale by the mean over a
    model's own tokens, measure `base.gradient_weight(log_probs).mean()` over a sample and pass it.

    Args:
        base: the objective to scale.
        mean_weight: mean of the base's W before scaling, above 0. 0 means its mean over uniform p, which exists if W
            is a non-negative function of p alone with a finite integral.
        target: mean of W after scaling, above 0.
    """

    base: Objective = field(default_factory=NLL)
    mean_weight: float = 0.0
    target: float = 0.5
    factor: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.target < math.inf:
            raise UserError("Balanced.target", f"expected a finite number above 0, got {self.target}")
        mean = self.mean_weight
        if mean == 0 and self.base.has_mass:
            mean = self.base.mass(0.0, 1.0)
        if not 0 < mean < math.inf:
            raise UserError(
                "Balanced.mean_weight",
                f"expected the mean weight of {self.base!r} over your tokens, a finite number "
                f"above 0{'' if self.mean_weight else ' (over uniform p it is undefined)'}, got {self.mean_weight}",
            )
        object.__setattr__(self, "factor", self.target / mean)

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), the base's value times c."""
        return self.factor * self.base.loss(tokens)

    @override
    def mass(self, low: float, high: float) -> float:
        return self.factor * self.base.mass(low, high)
