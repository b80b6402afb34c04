"""Chooses the documents of each epoch when sources are weighted or capped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_probsft.data.batches.store import TokenStore
from lit_probsft.data.rows.splits import LoadedSource
from lit_probsft.errors import errors_within


class EpochSampler:
    """Assigns documents to a fixed number of slots, again in every epoch.

    Every source has a quota: the number of its documents that an epoch shows. An epoch has one slot for each.

    Take a source with n documents and a quota of q. Each document fills q // n slots in every epoch. The other
    r = q % n slots rotate: in every epoch they show r different documents, and over n epochs each document comes up
    exactly r times.

    The rotation: sort the documents by length. Document i comes up in an epoch if (i + epoch) * r mod n < r. The chosen
    documents are spread evenly over the lengths, so a rotating slot always shows one of about n / r documents of
    similar length. The length of a slot is that of the longest of them. A plan made for the slots' lengths therefore
    fits every epoch.

    If r and n have a common divisor g, the documents are cut into g groups of neighbours in length. Each group has
    r / g of the slots and rotates by itself, from a random start.

    Args:
        lengths: (n,) tokens of each document.
        sources: (n,) source of each document, counted from 0.
        quotas: slots of each source.
        seed: decides where each rotation starts, and the order of documents of equal length.

    Attributes:
        lengths: (slots,) the most tokens that each slot ever holds.
        quotas: as given.
    """

    def __init__(self, lengths: ArrayLike, sources: ArrayLike, quotas: Sequence[int], *, seed: int = 0) -> None:
        all_lengths, all_sources = np.asarray(lengths, dtype=np.int64), np.asarray(sources)
        generator = np.random.default_rng([seed, len(all_lengths)])
        self.quotas = list(quotas)
        ranked_documents, slots, slot_lengths = [], [], []
        start = 0
        for source, quota in enumerate(self.quotas):
            documents = np.flatnonzero(all_sources == source)
            count = len(documents)
            if not count or not quota:
                continue
            repeats, rotating = divmod(quota, count)
            # Sorted by length, documents of equal length in random order.
            ranked = documents[np.lexsort((generator.random(count), all_lengths[documents]))]
            ranked_documents.append(ranked)
            # The slots that show the same document in every epoch: each a group of one document and one slot.
            fixed = np.tile(np.arange(count), repeats)
            slots.append([start + fixed, fixed * 0, fixed * 0 + 1, fixed * 0 + 1, fixed * 0])
            groups = math.gcd(rotating, count)
            group_size, group_slots = count // groups, rotating // groups
            group, index = np.repeat(np.arange(groups), group_slots), np.tile(np.arange(group_slots), groups)
            offset = np.repeat(generator.integers(group_size, size=groups), group_slots)
            first = start + group * group_size
            slots.append([first, index, index * 0 + group_slots, index * 0 + group_size, offset])
            longest = group * group_size + -(-(index + 1) * group_size // max(group_slots, 1)) - 1
            slot_lengths += [all_lengths[ranked[fixed]], all_lengths[ranked[longest]]]
            start += count
        empty = np.zeros(0, dtype=np.int64)
        self._documents, self.lengths = (np.concatenate([empty, *a]) for a in (ranked_documents, slot_lengths))
        # For each slot: where its group starts in `_documents`, its index among the group's slots, the slots and the
        # documents of the group, and the epoch at which the group starts to rotate.
        self._first, self._index, self._group_slots, self._group_size, self._offset = np.concatenate(
            [np.zeros((5, 0), dtype=np.int64), *(np.array(columns, dtype=np.int64) for columns in slots)], axis=1
        )

    def documents(self, epoch: int) -> NDArray[np.int64]:
        """Returns (slots,): the document that each slot shows in `epoch`."""
        shift = (epoch + self._offset) * self._group_slots % self._group_size
        # Slot k of a group shows its k-th document i with (i * group_slots + shift) mod group_size < group_slots.
        wraps = self._index + (shift >= self._group_slots)
        chosen = self._first - (shift - wraps * self._group_size) // self._group_slots
        documents: NDArray[np.int64] = self._documents[chosen]
        return documents

    def describe(self) -> dict[str, Any]:
        """Returns the sampler as plain data, for the record of a run."""
        return {"places": len(self.lengths), "quotas": self.quotas}


def sampler_for(store: TokenStore, loaded: LoadedSource, *, seed: int) -> EpochSampler | None:
    """Returns a sampler for the quotas of a mixture; None if every epoch shows each document once.

    Raises:
        UserError: the quotas cannot be met.
    """
    if store.sources is None:
        return None
    parts = loaded.source.parts
    counts = dict(zip(parts, np.bincount(store.sources, minlength=len(parts)).tolist(), strict=True))
    with errors_within(f"data.{loaded.argument}"):
        quotas = loaded.source.quotas(counts)
    if all(quotas.get(part, 0) == counts[part] for part in parts):
        return None
    return EpochSampler(store.lengths, store.sources, [quotas.get(part, 0) for part in parts], seed=seed)
