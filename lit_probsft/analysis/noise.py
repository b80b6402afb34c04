"""The share of wrong rows in training data, judged by a model that has not been trained on them.

A calibrated model is surprised by a right answer as often as it expects to be: the mean of -log p of its tokens equals
the mean entropy of its predictions. Another row's answer, a refusal or a slip surprises it more. So a row has two
coordinates: its excess surprise, mean -log p minus mean entropy, and its entropy. Real texts are never calibrated as a
whole, since a model does not expect their style and format, but that shifts all rows alike. Wrong rows are a second
group with more excess surprise. The share is the weight of this group in a mixture of two normal distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_probsft.analysis.survey import FEWEST_ROWS

Values = NDArray[np.float64]

ENOUGH_FOR_SHARE = 10
"""A share is estimated from this number of rows on, and its interval from `FEWEST_ROWS` on."""

_MOST_ROWS = 2000  # of more rows, as many are taken evenly: the share is then known to .02
_RESAMPLES = 100
_ITERATIONS = 100
_TOLERANCE = 1e-3  # of the probabilities of the rows, between two iterations
_STARTS = (0.1, 0.3, 0.5, 0.7, 0.9)
_RIDGE = 0.02  # of the variance of all rows: no group shrinks to a point
_PARAMETERS = 6  # that a second group adds: its share, two means, three covariances
_SEPARATION, _MORE_SURPRISED = 2.0, 1.5  # standard deviations, in the plane and in excess surprise alone
_NATS = 3.0  # of excess surprise of a whole row: wrong rows are 20 times less likely than right ones
_CONTRADICTED = 0.005  # how much larger the contradicted share of a wrong row's tokens is


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
        share: between 0 and 1; NaN if the model cannot tell: it knows too little of the rows, or contradicts even
            those that suit it best, or there are fewer than ten.
        interval: 95 % interval; None below `FEWEST_ROWS` rows. It reaches 1 as far as the model does not know the rows.
        scores: (R,), in nats, larger for rows that are more likely wrong, and above 0 for those that are counted as
            wrong; NaN for a row without tokens.
    """

    share: float
    interval: tuple[float, float] | None
    scores: Values


def estimate_noise(rows: RowStatistics) -> NoiseEstimate:
    """Estimate the share of wrong rows, with a 95 % interval from resampled rows.

    A group of wrong rows is counted if two groups explain the rows better than one (BIC), are two standard deviations
    apart, and 1.5 of them in excess surprise, and if the model contradicts the second group more often or is not more
    ignorant of it. If no group is found, the share is 0, or NaN if the model is ignorant of most tokens in most rows.

    Neither the share nor the interval covers wrong rows that surprise the model no more than right ones, such as a
    wrong number in a long text.

    The interval takes its upper end from fits that need not be separated, and adds the rows that the model does not
    know, since all of them may be wrong.

    The rows should be of one task: of an easy and a hard task together, the hard one looks like a group of wrong rows.
    Estimate them apart and `combine` the estimates.
    """
    excess = np.where(rows.tokens > 0, rows.nll - rows.entropy, math.nan)
    used = np.flatnonzero(np.isfinite(excess))
    if len(used) < ENOUGH_FOR_SHARE:
        return NoiseEstimate(math.nan, None, _from_edge(excess, 0.0))
    if len(used) > _MOST_ROWS:
        used = used[np.linspace(0, len(used) - 1, _MOST_ROWS).astype(int)]
    contradicted, ignorant = rows.contradicted[used], rows.ignorant[used]
    length = float(np.median(rows.tokens[used]))
    plane = _Plane.of(excess[used], rows.entropy[used], np.stack([contradicted, ignorant]), length)
    fit = _fit(plane)
    share = float(fit.counted()[0])
    right = 1 - fit.wrong[0] if share else np.ones(len(used))
    unknown = float((ignorant > 0.5).mean())
    enough = len(used) >= FEWEST_ROWS
    if right @ contradicted > 0.5 * right.sum() or (not share and unknown > 0.5):
        return NoiseEstimate(math.nan, (0.0, 1.0) if enough else None, _from_edge(excess, 0.0))
    interval = None
    if enough:
        low, high = _interval(plane, fit)
        high = max(high, share)
        interval = (min(low, share), high + (1 - high) * unknown)
    scores = excess + fit.slope() * rows.entropy if share else excess
    return NoiseEstimate(share, interval, _from_edge(scores, share))


def combine(estimates: Sequence[NoiseEstimate], parts: Sequence[NDArray[np.int64]]) -> NoiseEstimate:
    """The estimate for rows whose parts were estimated apart.

    Args:
        estimates: of each part.
        parts: indices of the rows of each part; together 0 to R - 1.

    The share is the mean over the parts, weighted by their rows. A part without an estimate or an interval counts as 0
    to 1 in the interval, so the interval is wider than needed for 95 %, never narrower.
    """
    scores = np.full(sum(map(len, parts)), math.nan)
    for estimate, part in zip(estimates, parts, strict=True):
        scores[part] = estimate.scores
    rows = np.array([np.isfinite(estimate.scores).sum() for estimate in estimates])
    weights = rows / max(rows.sum(), 1)
    shares = np.array([estimate.share for estimate in estimates])
    share, unknown = float(weights @ np.nan_to_num(shares)), float(weights @ np.isnan(shares))
    if not rows.any() or (not share and unknown > 0.5):
        share = math.nan
    if rows.sum() < FEWEST_ROWS:
        return NoiseEstimate(share, None, scores)
    low, high = weights @ [estimate.interval or (0.0, 1.0) for estimate in estimates]
    return NoiseEstimate(share, (float(low), float(high)), scores)


def _from_edge(scores: Values, share: float) -> Values:
    """Scores minus the one that separates this share of rows, the largest, from the rest."""
    ordered = -np.sort(-scores[np.isfinite(scores)])
    if not len(ordered):
        return scores
    wrong = round(share * len(ordered))
    return scores - float(ordered[max(wrong - 1, 0) : wrong + 1].mean())


@dataclass(frozen=True)
class _Plane:
    """n rows as points in the plane of excess surprise and entropy.

    Attributes:
        x, y: (n,), excess surprise and entropy, with mean 0 and variance 1.
        scale: (2,), their standard deviations in nats.
        center: (2,), their means in nats.
        beliefs: (2, n), contradicted and ignorant share of the tokens.
        length: tokens of a typical row.
    """

    x: Values
    y: Values
    scale: Values
    center: Values
    beliefs: Values
    length: float

    @classmethod
    def of(cls, excess: Values, entropy: Values, beliefs: Values, length: float) -> _Plane:
        """Standardize the rows."""
        points = np.stack([excess, entropy])
        center, scale = points.mean(1), points.std(1) + 1e-9
        x, y = (points - center[:, None]) / scale[:, None]
        return cls(x, y, scale, center, beliefs, length)


@dataclass(frozen=True)
class _Fits:
    """Mixtures of two normal distributions in the plane, B of them, for n rows. The second group is the wrong one.

    Attributes:
        plane: the rows.
        wrong: (B, n), probability that a row is in the second group.
        share: (B,), its weight.
        means: (B, 2, 2) of the groups, standardized.
        covariances: (B, 2, 3) of the groups, standardized: of excess surprise, of both, of entropy.
        beliefs: (B, 2, 2), contradicted and ignorant share of the tokens in the groups.
        gain: (B,), log likelihood minus that of one group.
    """

    plane: _Plane
    wrong: Values
    share: Values
    means: Values
    covariances: Values
    beliefs: Values
    gain: Values

    def counted(self, *, apart: bool = True) -> Values:
        """(B,), the share where there are two groups, 0 elsewhere.

        With `apart`, the groups must be apart, and the second one must not be just less known."""
        between = self.means[:, 1] - self.means[:, 0]
        pooled = self.covariances.mean(1)
        excess, entropy = (self.means[:, 1] * self.plane.scale + self.plane.center).T
        found = 2 * self.gain > _PARAMETERS * math.log(len(self.plane.x))
        found &= between[:, 0] * self.plane.scale[0] * self.plane.length >= _NATS
        found &= excess + entropy >= 0.5 * entropy  # less than half the surprise that the model expects is no error
        if apart:
            found &= np.sqrt(_quadratic(between, pooled)) >= _SEPARATION
            found &= between[:, 0] >= _MORE_SURPRISED * np.sqrt(pooled[:, 0])
            contradicted, ignorant = (self.beliefs[:, 1] - self.beliefs[:, 0]).T
            found &= (contradicted >= _CONTRADICTED) | (ignorant <= 0)
        return np.where(found, self.share, 0.0)

    def slope(self) -> float:
        """How many nats of excess surprise a nat of entropy is worth in telling the groups apart."""
        (x, y), (xx, xy, yy) = self.means[0, 1] - self.means[0, 0], self.covariances[0].mean(0)
        along, across = yy * x - xy * y, xx * y - xy * x  # the linear discriminant, up to a factor
        return float(across / along * self.plane.scale[0] / self.plane.scale[1]) if along > 0 else 0.0


def _interval(plane: _Plane, fit: _Fits) -> tuple[float, float]:
    """Bounds of the share from resampled rows; the lower one is that of separated groups."""
    rows = len(plane.x)
    weights = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), _RESAMPLES).astype(float)
    block = max(1, 400_000 // rows)
    found = [_fit(plane, weights[start : start + block], fit.wrong) for start in range(0, _RESAMPLES, block)]
    low = np.concatenate([fits.counted() for fits in found])
    high = np.concatenate([fits.counted(apart=False) for fits in found])
    none_seen = 1 - 0.025 ** (1 / rows)
    return float(np.quantile(low, 0.025)), max(float(np.quantile(high, 0.975)), none_seen)


def _fit(plane: _Plane, weights: Values | None = None, start: Values | None = None) -> _Fits:
    """Fit mixtures by expectation maximization.

    Args:
        plane: n rows.
        weights: (B, n), how often each row counts, for B fits. Without them there is one fit, the best of several.
        start: (1, n), the probabilities to begin with, for given weights.
    """
    x, y, rows = plane.x, plane.y, len(plane.x)
    if weights is None or start is None:
        wrong = np.stack([(x > np.quantile(x, level)).astype(float) for level in _STARTS])
        weights = np.ones_like(wrong)
    else:
        wrong = np.repeat(start, len(weights), 0)
    for _ in range(_ITERATIONS):
        before = wrong
        share = np.clip((weights * wrong).sum(1) / rows, 1 / rows, 1 - 1 / rows)
        groups = [_moments(x, y, weights * (1 - wrong)), _moments(x, y, weights * wrong)]
        logs = [
            np.log(part)[:, None] + _log_normal(x, y, *group)
            for part, group in zip((1 - share, share), groups, strict=True)
        ]
        both = np.logaddexp(*logs)
        wrong = np.exp(logs[1] - both)
        if np.abs(wrong - before).max() < _TOLERANCE:
            break
    single = _log_normal(x, y, *_moments(x, y, weights))
    gain = (weights * (both - single)).sum(1)
    means, covariances = (np.stack(values, 1) for values in zip(*groups, strict=True))
    swapped = means[:, 0, 0] > means[:, 1, 0]
    means[swapped], covariances[swapped] = means[swapped, ::-1], covariances[swapped, ::-1]
    wrong[swapped], share[swapped] = 1 - wrong[swapped], 1 - share[swapped]
    parts = [weights * (1 - wrong), weights * wrong]
    beliefs = np.stack([part @ plane.beliefs.T / (part.sum(1, keepdims=True) + 1e-9) for part in parts], 1)
    best = np.arange(len(gain)) if start is not None else gain.argmax(keepdims=True)
    return _Fits(plane, wrong[best], share[best], means[best], covariances[best], beliefs[best], gain[best])


def _moments(x: Values, y: Values, weights: Values) -> tuple[Values, Values]:
    """Means (B, 2) and covariances (B, 3) of standardized rows under weights (B, n), with the ridge."""
    total = weights.sum(1) + 1e-9
    mean = np.stack([weights @ x, weights @ y], -1) / total[:, None]
    products = np.stack([weights @ (x * x), weights @ (x * y), weights @ (y * y)], -1) / total[:, None]
    squares = np.stack([mean[:, 0] ** 2, mean[:, 0] * mean[:, 1], mean[:, 1] ** 2], -1)
    return mean, products - squares + (_RIDGE, 0.0, _RIDGE)


def _log_normal(x: Values, y: Values, mean: Values, covariance: Values) -> Values:
    """(B, n), log densities of normal distributions without the constant."""
    offset = np.stack([x - mean[:, :1], y - mean[:, 1:]], -1)
    determinant = covariance[:, 0] * covariance[:, 2] - covariance[:, 1] ** 2
    return -0.5 * (_quadratic(offset, covariance[:, None]) + np.log(determinant)[:, None])


def _quadratic(vectors: Values, covariance: Values) -> Values:
    """Squared Mahalanobis lengths of vectors (..., 2) under covariances (..., 3)."""
    x, y = vectors[..., 0], vectors[..., 1]
    xx, xy, yy = covariance[..., 0], covariance[..., 1], covariance[..., 2]
    return np.asarray((yy * x * x - 2 * xy * x * y + xx * y * y) / (xx * yy - xy * xy))
