"""Which documents an epoch visits, where that is not each of them once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class EpochSampler:
    """A fixed number of places in every epoch, and who takes them.

    An epoch has as many places as the quotas add up to. A source with q places for n documents visits each q // n
    times; the q % n = r places left go to others in every epoch: of the documents in the order of length those i with
    (i + epoch) r mod n < r, which are evenly spread, and each of them is there in exactly r of n epochs. The j-th place
    then belongs to one of about n / r neighbours, and has the length of the longest of them: plans for places hold for
    every epoch.

    Args:
        lengths: (n,) tokens of each document.
        sources: (n,) which source each is of, counted from 0.
        quotas: places of each source.
        seed: of who takes which turn.

    Attributes:
        lengths: (places,) most tokens of a document in each.
        quotas: as given.
    """

    def __init__(self, lengths: ArrayLike, sources: ArrayLike, quotas: Sequence[int], *, seed: int = 0) -> None:
        all_lengths, all_sources = np.asarray(lengths, dtype=np.int64), np.asarray(sources)
        generator = np.random.default_rng([seed, len(all_lengths)])
        self.quotas = list(quotas)
        # A place is the `turn`-th of `of` places for `sharers` documents, which lie in `_sharing` from `first` on.
        sharing, places, longest = [], [], []
        start = 0
        for source, quota in enumerate(self.quotas):
            documents = np.flatnonzero(all_sources == source)
            count = len(documents)
            if not count or not quota:
                continue
            times, rest = divmod(quota, count)
            # Equals in length in any order.
            ranked = documents[np.lexsort((generator.random(count), all_lengths[documents]))]
            # Without a common divisor (i + epoch) r goes through all remainders; each part begins somewhere else.
            parts = math.gcd(rest, count)
            sharers, of = count // parts, rest // parts
            part, turn = np.repeat(np.arange(parts), of), np.tile(np.arange(of), parts)
            begin = np.repeat(generator.integers(sharers, size=parts), of)
            alone = np.tile(np.arange(count), times)
            sharing.append(ranked)
            places.append([start + alone, alone * 0, alone * 0 + 1, alone * 0 + 1, alone * 0])
            places.append([start + part * sharers, turn, turn * 0 + of, turn * 0 + sharers, begin])
            last = part * sharers + -(-(turn + 1) * sharers // max(of, 1)) - 1
            longest += [all_lengths[ranked[alone]], all_lengths[ranked[last]]]
            start += count
        empty = np.zeros(0, dtype=np.int64)
        self._sharing, self.lengths = (np.concatenate([empty, *arrays]) for arrays in (sharing, longest))
        self._first, self._turn, self._of, self._sharers, self._begin = np.concatenate(
            [np.zeros((5, 0), dtype=np.int64), *(np.array(columns, dtype=np.int64) for columns in places)], axis=1
        )

    def documents(self, epoch: int) -> NDArray[np.int64]:
        """(places,): which document each place has in this epoch."""
        shift = (epoch + self._begin) * self._of % self._sharers
        # The `turn`-th i with (i of + shift) mod sharers < of.
        wraps = self._turn + (shift >= self._of)
        chosen: NDArray[np.int64] = self._sharing[self._first - (shift - wraps * self._sharers) // self._of]
        return chosen

    def describe(self) -> dict[str, Any]:
        """In plain data, for the record of a run."""
        return {"places": len(self.lengths), "quotas": self.quotas}
