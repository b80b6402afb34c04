"""Which documents an epoch visits, where that is not each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Visits:
    """A fixed number of places in every epoch, and who takes them.

    An epoch has as many places as the quotas add up to. A source with q places for n documents visits each q // n
    times; the q % n places left are shared by documents of similar length, which take turns from epoch to epoch, so
    that all are visited equally often in the end. A place has the length of the longest of those who share it: plans
    for places hold for every epoch.

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
        # A place's documents lie in `_sharing` from `_first` on, `_sharers` of them.
        sharing, first, sharers, longest = [], [], [], []
        start = 0
        for source, quota in enumerate(self.quotas):
            documents = np.flatnonzero(all_sources == source)
            if not len(documents) or not quota:
                continue
            times, rest = divmod(quota, len(documents))
            edges = np.arange(rest + 1) * len(documents) // max(rest, 1)
            sizes = np.diff(edges)
            groups = np.repeat(np.arange(rest), sizes)
            by_length = documents[np.argsort(all_lengths[documents], kind="stable")][: len(groups)]
            turns = by_length[np.lexsort((generator.random(len(by_length)), groups))]
            sharing += [documents, turns]
            first += [np.tile(np.arange(start, start + len(documents)), times), start + len(documents) + edges[:-1]]
            sharers += [np.ones(times * len(documents), dtype=np.int64), sizes]
            longest += [np.tile(all_lengths[documents], times), all_lengths[by_length[edges[1:] - 1]]]
            start += len(documents) + len(turns)
        empty = np.zeros(0, dtype=np.int64)
        self._sharing, self._first, self._sharers, self.lengths = (
            np.concatenate([empty, *arrays]) for arrays in (sharing, first, sharers, longest)
        )

    def documents(self, epoch: int) -> NDArray[np.int64]:
        """(places,): which document each place has in this epoch."""
        chosen: NDArray[np.int64] = self._sharing[self._first + epoch % self._sharers]
        return chosen

    def describe(self) -> dict[str, Any]:
        """In plain data, for the record of a run."""
        return {"places": len(self.lengths), "quotas": self.quotas}
