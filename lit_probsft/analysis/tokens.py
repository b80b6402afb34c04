"""Reading `tokens.npz`: p of validation tokens before and after training, and what follows from it.

It holds, for n supervised tokens of the validation set, evenly spread over its documents:

    document, row, position, token    (n,)     which document, its row in the source, the place in it, the token's id
    before, after                     (n,)     log p in nats; NaN where it was not measured
    pull_before, pull_after           (n,)     the objective's weight W on them, where that is a function of p alone
    weight_p                          (k,)     p at which W was taken: weight_before, weight_after (k,)
    calibration_before, _after        (15, 3)  tokens, sum of top p, right ones, by bin of top p, of the whole set
    moved                             (m,)     those that moved most in log p, first upwards, then downwards
    moved_text                        (m, 3)   the text before them, theirs, and the text behind
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_probsft.errors import UserError

Values = NDArray[np.float64]

EDGES = np.arange(-10.0, 11.0)
"""Of the bins of p, as log-odds log(p / (1 - p)): a model that knows little and one that knows much have most of their
tokens near one end of p. Beyond the edges lie p below .00005 and above .99995, which the outer bins take."""

BINS = len(EDGES) - 1


@dataclass(frozen=True)
class Moved:
    """A token that moved: its row in the source, log p before and after in nats, and its text between two others."""

    row: int
    before: float
    after: float
    text: tuple[str, str, str]


@dataclass(frozen=True)
class ChangeByBin:
    """By bin of p before training, arrays of `BINS`, NaN where a bin is empty.

    Attributes:
        tokens: how many.
        mean, low, high: of the change of log p, in nats: mean, lower and upper quartile.
        p_before, p_after: means of p.
    """

    tokens: NDArray[np.int64]
    mean: Values
    low: Values
    high: Values
    p_before: Values
    p_after: Values


class Tokens:
    """The arrays of a `tokens.npz`.

    Args:
        path: of the file.

    Raises:
        UserError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                self.arrays: dict[str, Any] = {name: file[name] for name in file.files}
            self.before, self.after = (self.arrays[name].astype(np.float64) for name in ("before", "after"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(str(path), f"expected the tokens of a run, which cannot be read: {error}") from error

    def measured(self, when: str) -> bool:
        """Was any token measured `before`, or `after`?"""
        return bool(np.isfinite(getattr(self, when)).any())

    @property
    def both(self) -> NDArray[np.bool_]:
        """(n,), which tokens were measured before and after."""
        there: NDArray[np.bool_] = np.isfinite(self.before) & np.isfinite(self.after)
        return there

    def histogram(self, when: str) -> Values:
        """(BINS,), shares of the tokens by p, of those measured `before` and after alike if there are any."""
        counts = np.bincount(bin_of(self._log_p(when)), minlength=BINS)
        shares: Values = counts / max(counts.sum(), 1)
        return shares

    def pull(self, when: str) -> Values | None:
        """(BINS,), the sum of W over the tokens by p, divided by the number of tokens: bins add up to the mean W. None
        where W is no function of p alone."""
        if f"pull_{when}" not in self.arrays:
            return None
        chosen = self._chosen(when)
        weights = np.nan_to_num(self.arrays[f"pull_{when}"][chosen])
        sums = np.bincount(bin_of(self._log_p(when)), weights=weights, minlength=BINS)
        return sums / max(int(chosen.sum()), 1)

    def change(self) -> ChangeByBin:
        """What became of tokens that began alike."""
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
        """Those that moved most, first upwards, then downwards."""
        return [
            Moved(
                int(self.arrays["row"][at]), float(self.before[at]), float(self.after[at]), (text[0], text[1], text[2])
            )
            for at, text in zip(self.arrays["moved"], self.arrays["moved_text"].tolist(), strict=True)
        ]

    def calibration(self, when: str) -> Values | None:
        """(15, 3), as `metrics.Calibration.bins`."""
        bins: Values | None = self.arrays.get(f"calibration_{when}")
        return bins

    def _chosen(self, when: str) -> NDArray[np.bool_]:
        return self.both if self.both.any() else np.isfinite(getattr(self, when))

    def _log_p(self, when: str) -> Values:
        values: Values = getattr(self, when)[self._chosen(when)]
        return values[np.isfinite(values)]


def bin_of(log_p: Values) -> NDArray[np.int64]:
    """Which of the `BINS` bins of p a log p lies in."""
    return np.searchsorted(EDGES, log_odds(log_p), side="right").clip(1, BINS) - 1


def log_odds(log_p: Values) -> Values:
    """log(p / (1 - p)), infinite where p = 1."""
    with np.errstate(divide="ignore"):
        odds: Values = log_p - np.log(-np.expm1(log_p))
    return odds
