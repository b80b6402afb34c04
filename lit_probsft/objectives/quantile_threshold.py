"""A threshold at a quantile of p before training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Capability, Objective, TokenStats, Wrapper
from lit_probsft.objectives.power import NLL
from lit_probsft.objectives.threshold import Threshold


@dataclass(frozen=True)
class QuantileThreshold(Wrapper):
    """`Threshold` with an edge at a quantile of p over the training tokens before training; the edge stays constant.

    The paper's percentile thresholds (Li et al. 2025, arXiv 2510.00526). As the model learns, the share of tokens
    inside moves away from `keep`; `train/inside` is the current share.

    Args:
        base: the objective inside the interval.
        keep: share of the tokens inside the interval at the start, .001 to .999 in steps of .001.
        side: `top` keeps the most probable tokens, `bottom` the least probable ones.
        source: a capability.json or its run's folder, which has the quantiles; by default they are measured before the
            first step.
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
    @override
    def needs(self) -> frozenset[str]:
        return self.base.needs | {"capability"}

    @override
    def fitted(self, capability: Capability) -> Threshold:
        permille, base = round(self.keep * 1000), self.base.fitted(capability)
        if self.side == "bottom":
            return Threshold(base, 0.0, capability.prob_at(permille))
        return Threshold(base, capability.prob_at(1000 - permille), 1.0)

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), the base's value inside the interval and 0 outside."""
        assert tokens.capability is not None
        return self.fitted(tokens.capability).loss(tokens)
