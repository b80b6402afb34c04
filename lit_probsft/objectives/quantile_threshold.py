"""A threshold at a quantile of p under the model before training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Capability, Objective, TokenStats, Wrapper
from lit_probsft.objectives.power import NLL
from lit_probsft.objectives.threshold import Threshold


@dataclass(frozen=True)
class QuantileThreshold(Wrapper):
    """`Threshold` whose edge is a quantile of p over the training tokens before training, a constant ever after.

    The paper's percentile thresholds (Li et al. 2025, arXiv 2510.00526). As the model learns, more or fewer tokens than
    `keep` lie inside; `train/inside` is their share.

    Args:
        base: the objective inside the interval.
        keep: share of the tokens that are inside at the start, .001 to .999 in steps of .001.
        side: `top` keeps the most probable tokens, `bottom` the least probable ones.
        source: the capability.json, or its run's folder, that tells the quantiles; by default they are measured.
    """

    base: Objective = field(default_factory=NLL)
    keep: float = 0.9
    side: Literal["top", "bottom"] = "top"
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.keep * 1000 <= 999 or abs(self.keep * 1000 - round(self.keep * 1000)) > 1e-6:
            raise UserError("QuantileThreshold.keep", f"expected .001 to .999 in steps of .001, got {self.keep}")
        if self.side not in ("top", "bottom"):
            raise UserError("QuantileThreshold.side", f"expected top or bottom, got {self.side!r}")

    @property
    def needs(self) -> frozenset[str]:
        """The capability, and what the base needs."""
        return self.base.needs | {"capability"}

    def fitted(self, capability: Capability) -> Threshold:
        """The threshold in numbers."""
        permille, base = round(self.keep * 1000), self.base.fitted(capability)
        if self.side == "bottom":
            return Threshold(base, 0.0, capability.prob_at(permille))
        return Threshold(base, capability.prob_at(1000 - permille), 1.0)

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), the base's range, and 0 outside the interval."""
        assert tokens.capability is not None
        return self.fitted(tokens.capability).loss(tokens)
