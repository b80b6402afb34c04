"""Sums over the tokens of the training rows, by example and by position, and statistics of these sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_probsft.head.loss import IGNORE_INDEX, HeadOutput
from lit_probsft.training.metrics import TokenSums

POSITION_GROUPS, TENTHS = 24, 10
"""Numbers of groups of tokens: by position in the answer, each group twice as wide as the one before; by tenth."""


class Survey(TokenSums):
    """Sums by example and by position in the answer, in fp64 (fp32 on Apple GPUs).

    Args:
        examples: number of examples.
    """

    by_example: Tensor
    """(examples, 5): number of tokens, and sums of p, -log p, correct and entropy over them."""
    by_position: Tensor
    """(POSITION_GROUPS, 3): number of tokens, sums of p and correct. Group k starts at position 2^k - 1, from 0."""
    by_tenth: Tensor
    """(TENTHS, 3): the same by tenths of the answer."""

    def __init__(self, examples: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sum("by_example", examples, 5)
        self.add_sum("by_position", POSITION_GROUPS, 3)
        self.add_sum("by_tenth", TENTHS, 3)

    def update(self, batch: dict[str, Any], output: HeadOutput) -> None:
        """Add a micro-batch.

        Args:
            batch: a batch of `collate` without packs; `documents` are indices of examples.
            output: the head's output for its N supervised tokens, with entropy.
        """
        assert output.entropy is not None
        self.keep_double()
        supervised = batch["labels"][:, 1:] != IGNORE_INDEX
        rows, _ = supervised.nonzero(as_tuple=True)
        position = (supervised.cumsum(-1) - 1)[supervised]
        length = supervised.sum(-1)[rows]
        p, correct = output.log_probs.exp(), output.correct
        ones = torch.ones_like(p)
        self._add(self.by_example, batch["documents"][rows], ones, p, -output.log_probs, correct, output.entropy)
        group = (position + 1).log2().floor().long().clamp(max=POSITION_GROUPS - 1)
        self._add(self.by_position, group, ones, p, correct)
        self._add(self.by_tenth, position * TENTHS // length.clamp(min=1), ones, p, correct)

    @staticmethod
    def _add(sums: Tensor, groups: Tensor, *values: Tensor) -> None:
        sums.index_add_(0, groups, torch.stack([value.to(sums.dtype) for value in values], -1))

    def compute(self) -> dict[str, NDArray[np.float64]]:
        """The sums over all ranks, by name."""
        states = {"by_example": self.by_example, "by_position": self.by_position, "by_tenth": self.by_tenth}
        return {name: sums.double().cpu().numpy() for name, sums in states.items()}


def clustered_interval(tokens: NDArray[np.float64], sums: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % confidence interval of mean p, sum(sums) / sum(tokens), clustered by example.

    Tokens of one answer are not independent, so examples are the sampling units: the normal interval of the ratio
    estimator with the t-quantile of n - 1 degrees of freedom, clipped to [0, 1].

    Args:
        tokens: (n,), number of tokens of each example.
        sums: (n,), sum of p over them.

    Returns:
        Lower and upper bound, or None for fewer than two examples with tokens.
    """
    used = tokens > 0
    tokens, sums = tokens[used], sums[used]
    n, total = len(tokens), tokens.sum()
    if n < 2:
        return None
    mean = sums.sum() / total
    half = _t_quantile(n - 1) * math.sqrt(n / (n - 1) * ((sums - mean * tokens) ** 2).sum()) / total
    return max(float(mean - half), 0.0), min(float(mean + half), 1.0)


def _t_quantile(freedom: int) -> float:
    """The .975-quantile of Student's t by Hill's expansion: exact for 1 and 2 degrees of freedom, else to 1 %."""
    if freedom == 1:
        return 12.7062
    if freedom == 2:
        return 4.3027
    z, v = 1.959964, freedom
    terms = (z, (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2))
    return sum(terms) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


def means(sums: NDArray[np.float64], names: Sequence[str]) -> list[dict[str, float | None]]:
    """Means from rows of sums whose first column is the number of tokens; None for a row without tokens."""
    return [
        {
            "tokens": int(row[0]),
            **{k: float(v / row[0]) if row[0] else None for k, v in zip(names, row[1:], strict=True)},
        }
        for row in sums
    ]
