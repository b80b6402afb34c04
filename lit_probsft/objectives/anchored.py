"""An anchor: a price for leaving the distribution of the model that training began with, added to any objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats, Wrapper
from lit_probsft.objectives.dft import DFT
from lit_probsft.objectives.power import NLL


@dataclass(frozen=True)
class Anchored(Wrapper):
    """f + weight KL, the divergence per token over the whole vocabulary between the model and a frozen reference.

    p is the model's distribution, q the reference's. `forward` is KL(q || p), which keeps the model wherever the
    reference has mass; its gradient on the logits is weight (p - q), and W is the base's plus weight (q - p) at the
    target. `reverse` is KL(p || q), which keeps the model from where the reference has none; W is the base's plus
    weight p (KL - log p + log q) at the target. Both are 0 as long as the model is the reference.

    Args:
        base: the objective that is anchored.
        weight: of the divergence, 0 (the base alone, no reference is loaded) or more.
        direction: of the divergence.
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
    def signed(self) -> bool:
        """True: a token surer than in the reference is pushed down."""
        return self.weight > 0 or self.base.signed

    @property
    def needs(self) -> frozenset[str]:
        """What the base needs, and the logits of both models."""
        return self.base.needs | ({"logits", "reference_logits"} if self.weight else frozenset())

    @property
    def interval(self) -> tuple[float, float]:
        """All of it: the anchor holds every token, whatever the base leaves out."""
        return (0.0, 1.0) if self.weight else self.base.interval

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), the base's range and up, in nats."""
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
    """f = -sg(p) log p + weight KL: DFT with an anchor, sg the stop-gradient; W = p (1 - p) + weight (q - p), forward.

    Zhu et al. 2025, "Anchored Supervised Fine-Tuning" (arXiv 2509.23753); the divergence over the whole vocabulary, its
    forward direction and the weight of 0.1 are those of the authors' code.

    Args:
        weight: of the divergence, 0 or more.
        direction: of the divergence, see `Anchored`.
    """

    base: Objective = field(default_factory=DFT, init=False, repr=False)
