"""A power whose exponent changes during training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import Objective, TokenStats
from lit_probsft.objectives.power import Power


@dataclass(frozen=True)
class PowerSchedule(Objective):
    """f = (1 - p^alpha) / alpha, alpha = start + (end - start) t, t the progress of the training; W = p^alpha (1 - p).

    From `Power(start)` at the first step towards `Power(end)` at the last. The values of two steps cannot be compared.

    Args:
        start: alpha at the beginning, any finite real number.
        end: alpha at the end.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not abs(getattr(self, name)) < 1e38:  # NaN too
                raise UserError(f"PowerSchedule.{name}", f"expected a real number that fp32 can hold, got {self}")

    @property
    def needs(self) -> frozenset[str]:
        """The progress of the training."""
        return frozenset({"progress"})

    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
        """Alpha."""
        assert tokens.progress is not None
        return {"alpha": self.start + (self.end - self.start) * tokens.progress}

    def loss(self, tokens: TokenStats) -> Tensor:
        """(N,), as `Power` with the alpha of now."""
        return Power(self.logged_values(tokens)["alpha"]).loss(tokens)
