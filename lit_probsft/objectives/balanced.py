"""Any objective at a given mean gradient weight, so that two of them at one learning rate compare in shape alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, Wrapper
from lit_probsft.objectives.power import NLL


@dataclass(frozen=True)
class Balanced(Wrapper):
    """c f with c = target / mean_weight; W is c times the base's.

    Without `mean_weight` the mean is over p uniform on 0 to 1, where that of NLL is 1/2. It is a constant: what the
    base's weight is on average over a model's tokens, and how that changes in training, is for the caller to measure
    (`base.gradient_weight(log_probs).mean()` over a sample).

    Args:
        base: the objective that is scaled.
        mean_weight: mean of the base's weight before scaling, above 0; 0 stands for its mean over uniform p, which
            there is where W is a non-negative function of p alone with a finite integral.
        target: mean of the weight after scaling, above 0.
    """

    base: Objective = field(default_factory=NLL)
    mean_weight: float = 0.0
    target: float = 0.5
    factor: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.target < math.inf:
            raise UserError("Balanced.target", f"expected a finite number above 0, got {self.target}")
        mean = self.mean_weight
        if mean == 0 and not (self.base.signed or self.base.needs - {"log_complement"}):
            mean = self.base.mass(0.0, 1.0)
        if not 0 < mean < math.inf:
            raise UserError(
                "Balanced.mean_weight",
                f"expected the mean weight of {self.base!r} over your tokens, a finite number "
                f"above 0{'' if self.mean_weight else ' (over uniform p there is none)'}, got {self.mean_weight}",
            )
        object.__setattr__(self, "factor", self.target / mean)

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), the base's range, scaled."""
        return self.factor * self.base.loss(tokens)

    def mass(self, low: float, high: float) -> float:
        """Integral of W from `low` to `high`."""
        return self.factor * self.base.mass(low, high)
