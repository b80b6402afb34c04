"""The power family and its two named members, -log p and -p."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, one_minus_exp

_LIMIT = 80.0
"""e^80 = 5.5e34 leaves room for sums in fp32."""
_NEARLY_ZERO = 1e-12
"""Below this size of alpha, alpha log p may underflow; two terms of the series are then exact to log p = -1e4."""


@dataclass(frozen=True)
class NLL(Objective):
    """f = -log p, negative log likelihood; W = 1 - p. Prior-averse: pulls hardest where p is small."""

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to infinity, in nats."""
        return -tokens.log_probs

    @override
    def mass(self, low: float, high: float) -> float:
        return power_mass(0.0, low, high)


@dataclass(frozen=True)
class NegP(Objective):
    """f = 1 - p, the paper's -p up to a constant; W = p (1 - p). The power from which on the family is prior-leaning.

    Li et al. 2025 (arXiv 2510.00526).
    """

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 1."""
        return one_minus_exp(tokens.log_probs)

    @override
    def mass(self, low: float, high: float) -> float:
        return power_mass(1.0, low, high)


@dataclass(frozen=True)
class Power(Objective):
    """f = (1 - p^alpha) / alpha; W = p^alpha (1 - p), with its peak at alpha / (1 + alpha).

    alpha = 0 is NLL, alpha = 1 NegP, alpha = 10 the paper's -p^10 up to constants (Li et al. 2025, arXiv 2510.00526),
    alpha < 0 more prior-averse than NLL. f is smooth through alpha = 0. Other names: generalized cross entropy (Zhang
    and Sabuncu 2018, q = alpha), Tsallis q-logarithm.

    For alpha < 0 the loss grows like p^alpha. There alpha log p is clamped at 80: a token beyond has the constant loss
    (e^80 - 1) / |alpha| and no gradient.

    Args:
        alpha: any finite number. The height of the peak of W falls from 1 (alpha = 0) to .25 (1) to .035 (10), so
            comparing alphas at one learning rate mixes shape with step size.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not abs(self.alpha) < 1e38:  # NaN too
            raise UserError("Power.alpha", f"expected a number within the range of fp32, got {self.alpha}")

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to 1/alpha for alpha > 0, 0 to infinity (as clamped) for alpha <= 0."""
        log_probs = tokens.log_probs
        if abs(self.alpha) < _NEARLY_ZERO:
            return -log_probs * (1 + self.alpha / 2 * log_probs)
        exponent = self.alpha * log_probs
        if self.alpha < 0:
            exponent = exponent.clamp(max=_LIMIT)
        return one_minus_exp(exponent) / self.alpha

    @override
    def mass(self, low: float, high: float) -> float:  # without the clamp
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

    def up_to(p: float) -> float:  # this form makes the lean of NegP exactly 1/2
        return float(p ** (alpha + 1) * (1 + (alpha + 1) * (1 - p)) / ((alpha + 1) * (alpha + 2)))

    def of_power(exponent: float) -> float:
        if exponent == -1:
            return math.log(high / low)
        return float((high ** (exponent + 1) - low ** (exponent + 1)) / (exponent + 1))

    return up_to(high) - up_to(low) if alpha > -1 else of_power(alpha) - of_power(alpha + 1)
