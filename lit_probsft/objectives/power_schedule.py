"""A power whose exponent changes during training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats
from lit_probsft.objectives.power import Power


@dataclass(frozen=True)
class PowerSchedule(Objective):
    """f = (1 - p^alpha) / alpha, alpha = start + (end - start) t, t = progress of the training; W = p^alpha (1 - p).

    Moves from `Power(start)` at the first step to `Power(end)` at the last. Loss values of different steps cannot be
    compared.

    Args:
        start: alpha at the start, any finite number.
        end: alpha at the end, any finite number.
    """

    start: float = 0.0
    end: float = 1.0

    needs = frozenset({"progress"})

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not abs(getattr(self, name)) < 1e38:  # NaN too
                raise UserError(f"PowerSchedule.{name}", f"expected a number within the range of fp32, got {self}")

    @override
    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
        assert tokens.progress is not None
        return {"alpha": self.start + (self.end - self.start) * tokens.progress}

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), as `Power` with the current alpha."""
        return Power(self.logged_values(tokens)["alpha"]).loss(tokens)
