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


STATISTICS = ("mean_prob", "nll", "accuracy", "entropy", "confidence", "ignorant", "contradicted")
"""Names of the means over tokens, in the order of the columns of the sums after the number of tokens.

`confidence` is p of the most probable token, whatever the label. `ignorant` and `contradicted` are shares of tokens.
"""

IGNORANT = 0.3
"""Below this p of the most probable token, the model has no guess: 70% or more is spread over other tokens."""

CONTRADICTED_LABEL, CONTRADICTED_TOP = 0.1, 0.7
"""A token is contradicted if its label has a p below the first while another token has a p above the second: the model
has a firm belief, and it is at least seven times as sure of the other token."""

FEWEST_ROWS = 30
"""An interval needs this many rows: with fewer, the normal approximation of the mean of a skewed p is poor."""


class Survey(TokenSums):
    """Sums by example and by position in the answer, in fp64 (fp32 on Apple GPUs).

    Args:
        examples: number of examples.
    """

    by_example: Tensor
    """(examples, 8): number of tokens, and sums of `STATISTICS` over them."""
    by_position: Tensor
    """(POSITION_GROUPS, 8): the same by position. Group k starts at position 2^k - 1, from 0."""
    by_tenth: Tensor
    """(TENTHS, 8): the same by tenths of the answer."""
    first: Tensor
    """(examples, 2): of the first contradicted token of an example, its position among the supervised tokens, from 1,
    and the id of the model's most probable token. Zeros without one."""

    def __init__(self, examples: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        width = 1 + len(STATISTICS)
        for name, groups in (("by_example", examples), ("by_position", POSITION_GROUPS), ("by_tenth", TENTHS)):
            self.add_sum(name, groups, width)
        self.add_sum("first", examples, 2)

    def update(self, batch: dict[str, Any], output: HeadOutput) -> None:
        """Add a micro-batch.

        Args:
            batch: a batch of `collate` without packs; `documents` are indices of examples.
            output: the head's output for its N supervised tokens, with entropy and top_token.
        """
        assert output.entropy is not None
        assert output.top_token is not None
        self.keep_double()
        supervised = batch["labels"][:, 1:] != IGNORE_INDEX
        rows, _ = supervised.nonzero(as_tuple=True)
        position = (supervised.cumsum(-1) - 1)[supervised]
        length = supervised.sum(-1)[rows]
        p, top = output.log_probs.exp(), output.top_prob
        contradicted = (p < CONTRADICTED_LABEL) & (top > CONTRADICTED_TOP)  # both are false for NaN
        values = (p, -output.log_probs, output.correct, output.entropy, top, top < IGNORANT, contradicted)
        columns = (torch.ones_like(p), *values)
        examples = batch["documents"][rows]
        self._add(self.by_example, examples, *columns)
        group = (position + 1).log2().floor().long().clamp(max=POSITION_GROUPS - 1)
        self._add(self.by_position, group, *columns)
        self._add(self.by_tenth, position * TENTHS // length.clamp(min=1), *columns)
        places = torch.zeros_like(supervised)
        places[supervised] = contradicted
        first = (places & (places.cumsum(-1) == 1))[supervised]
        self._add(self.first, examples[first], position[first] + 1, output.top_token[first])

    @staticmethod
    def _add(sums: Tensor, groups: Tensor, *values: Tensor) -> None:
        sums.index_add_(0, groups, torch.stack([value.to(sums.dtype) for value in values], -1))

    def compute(self) -> dict[str, NDArray[np.float64]]:
        """The sums over all ranks, by name."""
        return {name: sums.double().cpu().numpy() for name, sums in self.states().items()}


def clustered_interval(tokens: NDArray[np.float64], sums: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % confidence interval of mean p, sum(sums) / sum(tokens), clustered by example.

    Tokens of one answer are not independent, so examples are the sampling units: the normal interval of the ratio
    estimator with the t-quantile of n - 1 degrees of freedom, clipped to [0, 1].

    Args:
        tokens: (n,), number of tokens of each example.
        sums: (n,), sum of p over them.

    Returns:
        Lower and upper bound, or None for fewer than `FEWEST_ROWS` examples with tokens.
    """
    used = tokens > 0
    tokens, sums = tokens[used], sums[used]
    n, total = len(tokens), tokens.sum()
    if n < FEWEST_ROWS:
        return None
    mean = sums.sum() / total
    half = _t_quantile(n - 1) * math.sqrt(n / (n - 1) * ((sums - mean * tokens) ** 2).sum()) / total
    return max(float(mean - half), 0.0), min(float(mean + half), 1.0)


def _t_quantile(freedom: int) -> float:
    """The .975-quantile of Student's t by Hill's expansion, to 1e-5 from `FEWEST_ROWS` rows on."""
    z, v = 1.959964, freedom
    terms = (z, (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2))
    return sum(terms) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


def means(sums: NDArray[np.float64], names: Sequence[str] = STATISTICS) -> list[dict[str, float | None]]:
    """Means from rows of sums whose first column is the number of tokens; None for a row without tokens."""
    return [
        {
            "tokens": int(row[0]),
            **{k: float(v / row[0]) if row[0] else None for k, v in zip(names, row[1:], strict=True)},
        }
        for row in sums
    ]
