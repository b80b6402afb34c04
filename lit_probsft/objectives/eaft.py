"""Entropy-adaptive fine-tuning: NLL with less weight where the model is certain, right or wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats


@dataclass(frozen=True)
class EAFT(Objective):
    """f = -sg(h^alpha) log p, h = entropy of the k most probable tokens / log k; W = h^alpha (1 - p).

    The k probabilities are renormalized for the entropy, as in the authors' code. sg is the stop-gradient. Diao et al.
    2026, "Entropy-Adaptive Fine-Tuning" (arXiv 2601.02151).

    Args:
        k: number of most probable tokens, at least 2; 20 in the paper.
        alpha: exponent of the entropy, 0 (NLL) or more; 1 in the paper.
    """

    k: int = 20
    alpha: float = 1.0

    needs = frozenset({"top_entropy"})

    def __post_init__(self) -> None:
        if self.k < 2:
            raise UserError("EAFT.k", f"expected at least 2 tokens, got {self.k}")
        if not 0 <= self.alpha < math.inf:
            raise UserError("EAFT.alpha", f"expected a finite exponent, 0 or more, got {self.alpha}")

    @property
    @override
    def top_k(self) -> int:
        return self.k

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), 0 to infinity, in nats."""
        assert tokens.top_entropy is not None
        return -((tokens.top_entropy / math.log(self.k)).clamp(min=0) ** self.alpha) * tokens.log_probs
