"""The power family, with -log p and -p as its two named members."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp

_LIMIT = 80.0
"""e^80 = 5.5e34 still leaves fp32 room for a sum."""
_NEARLY_ZERO = 1e-12
"""Below it alpha log p may underflow, while two terms of the series are exact in double down to log p = -1e4."""


@dataclass(frozen=True)
class NLL(Objective):
    """f = -log p, negative log likelihood; W = 1 - p. Prior-averse: it works hardest on what the model does not
    believe."""

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to infinity, in nats."""
        return -tokens.log_probs

    def mass(self, low: float, high: float) -> float:
        """Integral of W from `low` to `high`, in closed form."""
        return power_mass(0.0, low, high)


@dataclass(frozen=True)
class NegP(Objective):
    """f = 1 - p, the paper's -p up to a constant; W = p (1 - p). The first prior-leaning member of the power family."""

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 1."""
        return one_minus_exp(tokens.log_probs)

    def mass(self, low: float, high: float) -> float:
        """Integral of W from `low` to `high`, in closed form."""
        return power_mass(1.0, low, high)


@dataclass(frozen=True)
class Power(Objective):
    """f = (1 - p^alpha) / alpha; W = p^alpha (1 - p), whose peak lies at alpha / (1 + alpha).

    alpha = 0 is NLL, alpha = 1 NegP, alpha = 10 the paper's -p^10 up to a constant, alpha < 0 more averse than NLL.
    Also known as generalized cross entropy (Zhang and Sabuncu 2018, q = alpha) and as the Tsallis q-logarithm. Smooth
    through alpha = 0.

    For alpha < 0 the loss grows like p^alpha: alpha log p is clamped at 80, and a token beyond that has the constant
    loss (e^80 - 1) / |alpha| and no gradient. For alpha >= 0 nothing is clamped.

    Args:
        alpha: any finite real number. The peak of W falls from 1 (alpha = 0) to .25 (1) to .035 (10), so that comparing
            alphas at one learning rate mixes the shape with the size of the step.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not abs(self.alpha) < 1e38:  # NaN too
            raise UserError("Power.alpha", f"expected a real number that fp32 can hold, got {self.alpha}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 1/alpha for alpha > 0, 0 to infinity (as clamped) for alpha <= 0."""
        log_probs = tokens.log_probs
        if abs(self.alpha) < _NEARLY_ZERO:
            return -log_probs * (1 + self.alpha / 2 * log_probs)
        exponent = self.alpha * log_probs
        if self.alpha < 0:
            exponent = exponent.clamp(max=_LIMIT)
        return one_minus_exp(exponent) / self.alpha

    def mass(self, low: float, high: float) -> float:
        """Integral of W from `low` to `high`, in closed form; infinite from 0 for alpha <= -1 (the clamp is not
        counted)."""
        return power_mass(self.alpha, low, high)


def power_mass(alpha: float, low: float, high: float) -> float:
    """Integral of p^alpha (1 - p) from `low` to `high`, 0 <= low <= high <= 1."""
    if high <= low:
        return 0.0
    if low == 0 and alpha <= -1:
        return math.inf
    try:
        return _power_mass(alpha, low, high)
    except OverflowError:
        return math.inf


def _power_mass(alpha: float, low: float, high: float) -> float:

    def up_to(p: float) -> float:  # in this form NegP is balanced to the last bit
        return float(p ** (alpha + 1) * (1 + (alpha + 1) * (1 - p)) / ((alpha + 1) * (alpha + 2)))

    def of_power(exponent: float) -> float:
        if exponent == -1:
            return math.log(high / low)
        return float((high ** (exponent + 1) - low ** (exponent + 1)) / (exponent + 1))

    return up_to(high) - up_to(low) if alpha > -1 else of_power(alpha) - of_power(alpha + 1)
