"""What is always measured beside the objective, as sums over supervised tokens and all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_probsft.head import HeadOutput
from lit_probsft.objectives import Objective, Threshold


class TokenMeans(Metric):
    """Means over supervised tokens: `loss` (the objective's f), `nll` (nats), `mean_p`, `accuracy` (share of tokens
    with the largest logit), `inside` (share of tokens whose p lies in the objective's interval).
    """

    full_state_update = False
    sums: Tensor

    NAMES = ("loss", "nll", "mean_p", "accuracy", "inside")

    def __init__(self, objective: Objective, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        low, high = objective.interval
        self._interval = Threshold(min_prob=low, max_prob=high)
        # fp32 stops counting at 2^24 tokens, but Apple's GPUs have nothing wider.
        self._wide = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("sums", torch.zeros(len(self.NAMES) + 1, dtype=self._wide), dist_reduce_fx="sum")

    def _apply(self, fn: Any, exclude_state: Any = ()) -> Any:
        # A module that is cast to bf16 would take the sums along, and bf16 counts to 256.
        applied = super()._apply(fn, exclude_state)
        self.sums = self.sums.to(self._wide)
        self._defaults["sums"] = torch.zeros_like(self.sums)
        return applied

    def update(self, output: HeadOutput) -> None:
        """Add the tokens of a head's output, none of which may be ignored."""
        per_token = (
            output.token_losses,
            -output.log_probs,
            output.log_probs.exp(),
            output.correct,
            self.inside(output),
            torch.ones_like(output.log_probs),
        )
        self.sums += torch.stack([values.to(self.sums.dtype).sum() for values in per_token])

    def inside(self, output: HeadOutput) -> Tensor:
        """(N,), bool: which tokens lie in the objective's interval."""
        return self._interval.inside(output.log_probs)

    @property
    def tokens(self) -> Tensor:
        """Number of tokens on this rank, or on all of them while synchronized."""
        return self.sums[-1]

    def compute(self) -> dict[str, Tensor]:
        """The means, NaN before the first token."""
        return dict(zip(self.NAMES, self.sums[:-1] / self.sums[-1], strict=True))
