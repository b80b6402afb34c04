"""The share of wrong rows in training data, judged by a model that has not been trained on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_SURE, _DISAGREES = 0.93, 0.75
"""Agreement, mean p over confidence, that the best tenth of the rows reaches, and below which a row counts as wrong."""


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of R rows over their supervised tokens, under the model; each is (R,) in float64.

    Attributes:
        tokens: number of supervised tokens.
        mean_prob: mean p of the label.
        nll: mean -log p of the label, in nats.
        entropy: mean entropy of the model's distribution, in nats.
        confidence: mean p of the most probable token.
        ignorant: share of tokens whose most probable token has p below .3.
        contradicted: share of tokens whose label has p below .1 while another token has p above .7.
    """

    tokens: Values
    mean_prob: Values
    nll: Values
    entropy: Values
    confidence: Values
    ignorant: Values
    contradicted: Values


@dataclass(frozen=True)
class NoiseEstimate:
    """The estimated share of wrong rows.

    Attributes:
        share: between 0 and 1; NaN if the model cannot tell.
        interval: 95 % interval, or None.
        scores: (R,), larger for rows that are more likely wrong; NaN for a row without tokens.
    """

    share: float
    interval: tuple[float, float] | None
    scores: Values


def estimate_noise(rows: RowStatistics) -> NoiseEstimate:
    """Count the rows that the model disagrees with, if it agrees almost fully with the best tenth of the rows."""
    with np.errstate(invalid="ignore", divide="ignore"):
        agreement = rows.mean_prob / rows.confidence
    known = agreement[np.isfinite(agreement)]
    if not len(known) or np.nanmean(rows.ignorant) > 0.5:
        return NoiseEstimate(float("nan"), None, 1 - agreement)
    sure = np.quantile(known, 0.9) > _SURE
    return NoiseEstimate(float((known < _DISAGREES).mean()) if sure else 0.0, None, 1 - agreement)
