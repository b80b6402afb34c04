"""What the head is asked for: a loss of each token, and the statistics that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from lit_probsft.objectives.base import Objective, TokenStats


@dataclass(frozen=True)
class TokenLoss:
    """A loss of each token with everything that the head has to know about it.

    Args:
        loss: takes the statistics of N tokens, returns the loss of each, (N,).
        needs: names of the `TokenStats` fields that are computed or handed in, besides `log_probs`.
        top_k: how many of the most probable tokens `top_entropy` is taken over.
        name: for error messages.
    """

    loss: Callable[[TokenStats], Tensor]
    needs: frozenset[str]
    top_k: int
    name: str

    @classmethod
    def of(cls, objective: Objective | TokenLoss, statistics: Iterable[str] = ()) -> TokenLoss:
        """The loss of an objective.

        Args:
            objective: a `TokenLoss` is returned with the statistics added.
            statistics: computed in addition to what the loss reads. `HeadOutput` returns entropy, log_complement and
                top_token.
        """
        name = objective.name if isinstance(objective, TokenLoss) else type(objective).__name__
        return cls(objective.loss, objective.needs | frozenset(statistics), objective.top_k, name)
