"""All that is added up of a model's tokens while it is run over its training rows, and what follows from the sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from lit_probsft.head.loss import IGNORE_INDEX, HeadOutput

PLACES, TENTHS = 24, 10
"""Groups of tokens: by place in the answer, doubling in width; by share of the answer."""


class Survey(Metric):
    """Sums by example and by place in the answer; the probe's histogram and its calibration have the rest.

    Args:
        examples: how many there are.
    """

    full_state_update = False
    of_examples: Tensor
    """(examples, 5): tokens, and over them the sums of p, -log p, correct and entropy."""
    of_places: Tensor
    """(PLACES, 3): tokens, p, correct. Group k has the places from 2^k - 1 on, counted from 0."""
    of_tenths: Tensor
    """(TENTHS, 3): the same by tenths of the answer."""

    def __init__(self, examples: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._wide = torch.float32 if torch.backends.mps.is_available() else torch.float64
        sizes = {"examples": (examples, 5), "places": (PLACES, 3), "tenths": (TENTHS, 3)}
        for name, size in sizes.items():
            self.add_state(f"of_{name}", torch.zeros(size, dtype=self._wide), dist_reduce_fx="sum")

    def _apply(self, fn: Any, exclude_state: Any = ()) -> Any:
        # A module that is cast to bf16 would take the sums along.
        applied = super()._apply(fn, exclude_state)
        for name in self._defaults:
            setattr(self, name, getattr(self, name).to(self._wide))
        return applied

    def update(self, batch: dict[str, Any], output: HeadOutput) -> None:
        """Add a micro-batch.

        Args:
            batch: as `collate` makes it, without packs; `documents` count from 0 to the number of examples.
            output: of its N supervised tokens, with their entropy.
        """
        assert output.entropy is not None
        supervised = batch["labels"][:, 1:] != IGNORE_INDEX
        rows, _ = supervised.nonzero(as_tuple=True)
        place = (supervised.cumsum(-1) - 1)[supervised]
        length = supervised.sum(-1)[rows]
        p, correct = output.log_probs.exp(), output.correct
        ones = torch.ones_like(p)
        self._add("examples", batch["documents"][rows], ones, p, -output.log_probs, correct, output.entropy)
        group = (place + 1).log2().floor().long().clamp(max=PLACES - 1)
        self._add("places", group, ones, p, correct)
        self._add("tenths", place * TENTHS // length.clamp(min=1), ones, p, correct)

    def _add(self, name: str, groups: Tensor, *values: Tensor) -> None:
        sums: Tensor = getattr(self, f"of_{name}")
        sums.index_add_(0, groups, torch.stack([value.to(sums.dtype) for value in values], -1))

    def compute(self) -> dict[str, NDArray[np.float64]]:
        """The sums of all ranks, by name."""
        return {name: getattr(self, name).double().cpu().numpy() for name in self._defaults}


def clustered_interval(tokens: NDArray[np.float64], sums: NDArray[np.float64]) -> tuple[float, float] | None:
    """The 95 % interval of sum(sums) / sum(tokens), by examples: tokens of one answer are not independent.

    The ratio estimator's normal interval with the t-quantile of n - 1 degrees of freedom, cut to 0 and 1. It is that of
    the kind of rows that these were drawn from; None for fewer than two examples.

    Args:
        tokens: (n,) of each example.
        sums: (n,) of p over them.
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
    """The .975-quantile of Student's t: Hill's expansion, exact for 1 and 2 degrees of freedom, else to 1 %."""
    if freedom == 1:
        return 12.7062
    if freedom == 2:
        return 4.3027
    z, v = 1.959964, freedom
    terms = (z, (z**3 + z) / (4 * v), (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2))
    return sum(terms) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)


def means(sums: NDArray[np.float64], names: Sequence[str]) -> list[dict[str, float | None]]:
    """Rows of sums, tokens first, as means under these names; None where there were no tokens."""
    return [
        {
            "tokens": int(row[0]),
            **{k: float(v / row[0]) if row[0] else None for k, v in zip(names, row[1:], strict=True)},
        }
        for row in sums
    ]
