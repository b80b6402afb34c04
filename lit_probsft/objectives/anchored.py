"""Any objective plus a penalty for leaving the distribution of the model before training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, Wrapper
from lit_probsft.objectives.dft import DFT
from lit_probsft.objectives.power import NLL


@dataclass(frozen=True)
class Anchored(Wrapper):
    """f + weight KL, where KL is the divergence per token over the vocabulary between the model and a reference.

    p is the model's distribution, q that of the frozen reference. `forward` is KL(q || p): it holds the model where the
    reference has mass. Its gradient on the logits is weight (p - q); W is the base's plus weight (q - p) at the target.
    `reverse` is KL(p || q): it keeps the model away from tokens to which the reference gives no mass; W is the base's
    plus weight p (KL - log p + log q) at the target. Both are 0 while the model equals the reference.

    Args:
        base: the anchored objective.
        weight: factor of the divergence, 0 or more; with 0 no reference is loaded.
        direction: direction of the divergence.
    """

    base: Objective = field(default_factory=NLL)
    weight: float = 0.1
    direction: Literal["forward", "reverse"] = "forward"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 <= self.weight < math.inf:
            raise UserError(f"{name}.weight", f"expected a finite number, 0 or more, got {self.weight}")
        if self.direction not in ("forward", "reverse"):
            raise UserError(f"{name}.direction", f"expected forward or reverse, got {self.direction!r}")

    @property
    @override
    def signed(self) -> bool:  # a token that is more probable than under the reference is pushed down
        return self.weight > 0 or self.base.signed

    @property
    @override
    def needs(self) -> frozenset[str]:
        return self.base.needs | ({"logits", "reference_logits"} if self.weight else frozenset())

    @property
    @override
    def interval(self) -> tuple[float, float]:  # the anchor also covers tokens that the base leaves out
        return (0.0, 1.0) if self.weight else self.base.interval

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), at least the base's value, in nats."""
        loss = self.base.loss(tokens)
        if not self.weight:
            return loss
        assert tokens.logits is not None
        assert tokens.reference_logits is not None
        log_p, log_q = tokens.logits.log_softmax(-1), tokens.reference_logits.log_softmax(-1)
        if self.direction == "reverse":
            log_p, log_q = log_q, log_p
        return loss + self.weight * (log_q.exp() * (log_q - log_p)).sum(-1).to(loss.dtype)


@dataclass(frozen=True)
class ASFT(Anchored):
    """f = -sg(p) log p + weight KL, anchored DFT; W = p (1 - p) + weight (q - p) in the forward direction.

    sg is the stop-gradient. Zhu et al. 2025, "Anchored Supervised Fine-Tuning" (arXiv 2509.23753). The authors' code
    also sums over the whole vocabulary, in the forward direction, with weight 0.1.

    Args:
        weight: factor of the divergence, 0 or more.
        direction: direction of the divergence, see `Anchored`.
    """

    base: Objective = field(default_factory=DFT, init=False, repr=False)
