"""Reads `tokens.npz`: p of validation tokens before and after training.

The file has n supervised tokens of the validation set, spread evenly over its documents:

    document, row, position, token    (n,)     document, its row in the source, position in the document, token id
    before, after                     (n,)     log p in nats; NaN if not measured
    pull_before, pull_after           (n,)     the objective's weight W, if it is a function of p alone
    weight_p                          (k,)     a grid of p; weight_before and weight_after (k,) are W on the grid
    calibration_before, _after        (15, 3)  number of tokens, sum of top p, number of correct ones, by bin of top p,
                                               for the whole validation set
    moved                             (m,)     indices of the tokens with the largest change of log p: first increases,
                                               then decreases
    moved_text                        (m, 3)   the text before the token, its own text, the text after it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_probsft.errors import UserError, first_line

Values = NDArray[np.float64]

EDGES = np.arange(-10.0, 11.0)
"""Edges of the bins of p, in log-odds log(p / (1 - p)), since most tokens of a weak or a strong model are near one end
of p. The outer bins also take p below .00005 and above .99995."""

BINS = len(EDGES) - 1


@dataclass(frozen=True)
class Moved:
    """A token whose p has changed: its row in the source, log p before and after in nats, and its text with context."""

    row: int
    before: float
    after: float
    text: tuple[str, str, str]


@dataclass(frozen=True)
class ChangeByBin:
    """The change of p by bin of p before training: arrays of `BINS` values, NaN for an empty bin.

    Attributes:
        tokens: number of tokens.
        mean, low, high: mean, lower quartile and upper quartile of the change of log p, in nats.
        p_before, p_after: mean p before and after training.
    """

    tokens: NDArray[np.int64]
    mean: Values
    low: Values
    high: Values
    p_before: Values
    p_after: Values


class Tokens:
    """The arrays of a `tokens.npz`.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                self.arrays: dict[str, Any] = {name: file[name] for name in file.files}
            self.before, self.after = (self.arrays[name].astype(np.float64) for name in ("before", "after"))
        except Exception as error:  # numpy and zipfile raise many kinds
            raise UserError(
                str(path), f"expected the tokens of a run; the file cannot be read: {first_line(error)}"
            ) from error

    def measured(self, when: str) -> bool:
        """Whether any token was measured, `before` or `after`."""
        return bool(np.isfinite(getattr(self, when)).any())

    @property
    def both(self) -> NDArray[np.bool_]:
        """(n,), which tokens were measured both before and after."""
        measured: NDArray[np.bool_] = np.isfinite(self.before) & np.isfinite(self.after)
        return measured

    def histogram(self, when: str) -> Values:
        """(BINS,), share of tokens by p.

        Counts the tokens measured both times; if there are no such tokens, all that were measured `when`.
        """
        counts = np.bincount(bin_of(self._log_p(when)), minlength=BINS)
        shares: Values = counts / max(counts.sum(), 1)
        return shares

    def pull(self, when: str) -> Values | None:
        """(BINS,), sum of W by p, divided by the number of all tokens: the bins add up to the mean of W.

        None if W is not a function of p alone.
        """
        if f"pull_{when}" not in self.arrays:
            return None
        chosen = self._chosen(when)
        weights = np.nan_to_num(self.arrays[f"pull_{when}"][chosen])
        sums = np.bincount(bin_of(self._log_p(when)), weights=weights, minlength=BINS)
        return sums / max(int(chosen.sum()), 1)

    def change(self) -> ChangeByBin:
        """The change of p by bin of p before training."""
        before, after = self.before[self.both], self.after[self.both]
        place = bin_of(before)
        found = {name: np.full(BINS, np.nan) for name in ("mean", "low", "high", "p_before", "p_after")}
        for index in np.unique(place):
            here = place == index
            moved = after[here] - before[here]
            found["mean"][index] = moved.mean()
            found["low"][index], found["high"][index] = np.quantile(moved, [0.25, 0.75])
            found["p_before"][index], found["p_after"][index] = np.exp(before[here]).mean(), np.exp(after[here]).mean()
        return ChangeByBin(np.bincount(place, minlength=BINS), **found)

    def moved(self) -> list[Moved]:
        """The tokens with the largest change of log p: first increases, then decreases."""
        return [
            Moved(int(self.arrays["row"][i]), float(self.before[i]), float(self.after[i]), (text[0], text[1], text[2]))
            for i, text in zip(self.arrays["moved"], self.arrays["moved_text"].tolist(), strict=True)
        ]

    def calibration(self, when: str) -> Values | None:
        """(15, 3), as `lit_probsft.training.metrics.Calibration.bins`."""
        bins: Values | None = self.arrays.get(f"calibration_{when}")
        return bins

    def _chosen(self, when: str) -> NDArray[np.bool_]:
        return self.both if self.both.any() else np.isfinite(getattr(self, when))

    def _log_p(self, when: str) -> Values:
        values: Values = getattr(self, when)[self._chosen(when)]
        return values[np.isfinite(values)]


def bin_of(log_p: Values) -> NDArray[np.int64]:
    """Index of the bin of p for each log p."""
    return np.searchsorted(EDGES, log_odds(log_p), side="right").clip(1, BINS) - 1


def log_odds(log_p: Values) -> Values:
    """log(p / (1 - p)), infinite at p = 1."""
    with np.errstate(divide="ignore"):
        odds: Values = log_p - np.log(-np.expm1(log_p))
    return odds
