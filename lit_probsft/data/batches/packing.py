"""Packs several documents into a row of at most `max_length` tokens, nearly full, as a plan of complete windows.

Which lengths share a pack is decided once for the whole data set: first the longest document, then the longest that
still fits, and at the end the pair that fills the rest best. Only lengths matter here, and there are at most
`max_length` of them. A pack found once is repeated as often as there are documents of its lengths, so that packing a
million documents takes a fraction of a second. Every epoch draws which document takes which place of its length, and
the order of the packs. The number of packs never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import override

from lit_probsft.data.batches.plan import EpochOrder, Plan
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from lit_probsft.data.batches.epoch_sampling import EpochSampler

_PAIR_SLACK = 32
"""A pair may end a pack if it leaves fewer empty tokens than this, and fewer than the best single document would."""


def packs_of_lengths(counts: ArrayLike, max_length: int) -> list[tuple[int, dict[int, int]]]:
    """Packs a data set, given only the lengths of its documents.

    Args:
        counts: (max_length + 1,) the number of documents of length 0, 1, ...; no document has length 0.
        max_length: the most tokens of a pack.

    Returns:
        The kinds of packs: the number of packs of each kind, and the documents in one of them, {length: number}.
        Together they hold every document once.
    """
    left = [int(count) for count in np.asarray(counts)]
    # The lengths that are left, as the bits of an integer (bit l for length l), and mirrored (bit max_length - l). One
    # shift and one AND then find all lengths whose partner in a pair of a given total is left too.
    present = sum(1 << length for length, count in enumerate(left) if count)
    mirrored = sum(1 << max_length - length for length, count in enumerate(left) if count)
    kinds = []
    while present:
        pack = _fill_pack(left, present, mirrored, max_length)
        copies = min(left[length] // number for length, number in pack.items())
        kinds.append((copies, pack))
        for length, number in pack.items():
            left[length] -= copies * number
            if not left[length]:
                present &= ~(1 << length)
                mirrored &= ~(1 << max_length - length)
    return kinds


def _fill_pack(left: list[int], present: int, mirrored: int, max_length: int) -> dict[int, int]:
    """One pack, {length: number}, from `left[l]` documents of each length l."""
    pack: dict[int, int] = {}
    room = max_length
    while fitting := present & ((2 << room) - 1):
        longest, shortest = fitting.bit_length() - 1, (fitting & -fitting).bit_length() - 1
        chosen = [longest]
        if pack and longest < room < longest + 2 * shortest:  # at most one more document fits after the longest
            for total in range(room, max(longest, 2 * shortest - 1, room - _PAIR_SLACK), -1):
                pairs = fitting & (mirrored >> max_length - total)
                half, odd = divmod(total, 2)
                if not odd and left[half] - pack.get(half, 0) < 2:
                    pairs &= ~(1 << half)
                if pairs:
                    larger = pairs.bit_length() - 1
                    chosen = [larger, total - larger]
                    break
        for length in chosen:
            pack[length] = pack.get(length, 0) + 1
            room -= length
            if pack[length] == left[length]:
                present &= ~(1 << length)
                mirrored &= ~(1 << max_length - length)
    return pack


@dataclass(frozen=True)
class _PackedOrder(EpochOrder):
    """The order of one epoch, pack after pack.

    Attributes:
        starts: (packs + 1,) pack i has the documents from `starts[i]` to `starts[i + 1]`.
        supervised: (packs,) supervised tokens of each pack.
    """

    starts: NDArray[np.int64]
    supervised: NDArray[np.int64]


class PackedPlan(Plan):
    """The order of a data set whose documents share rows.

    A row is a pack of whole documents with at most `max_length` tokens in total. A window is G = batch_size *
    accumulate * world_size packs, drawn at random. Its content depends on G, not on its factors. Within a window,
    packs are distributed so that ranks have nearly equal numbers of supervised tokens, in total and at each step.
    Empty packs fill the last window.

    Args:
        lengths: as in `Plan`.
        supervised: as in `Plan`.
        max_length: the most tokens of a pack; no document may be longer.
        batch_size: packs in a full micro-batch.
        accumulate: as in `Plan`.
        world_size: as in `Plan`.
        seed: as in `Plan`.
        sampler: as in `Plan`.

    Raises:
        UserError: a document is empty or longer than `max_length`.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        supervised: ArrayLike,
        *,
        max_length: int,
        batch_size: int,
        accumulate: int = 1,
        world_size: int = 1,
        seed: int = 0,
        sampler: EpochSampler | None = None,
    ) -> None:
        windows: dict[str, Any] = {"batch_size": batch_size, "accumulate": accumulate, "world_size": world_size}
        super().__init__(lengths, supervised, **windows, seed=seed, pool=0, sampler=sampler)
        if len(self.lengths) and not 1 <= self.lengths.min() <= self.lengths.max() <= max_length:
            raise UserError(
                "max_length",
                f"expected documents of 1 to {max_length} tokens, got {self.lengths.min()} to {self.lengths.max()}",
            )
        self.max_length = max_length
        counts = np.bincount(self._slot_lengths, minlength=max_length + 1)
        kinds = packs_of_lengths(counts, max_length)
        copies_of, sizes = np.array([(copies, sum(pack.values())) for copies, pack in kinds]).reshape(-1, 2).T
        self._sizes = np.repeat(sizes.astype(int), copies_of.astype(int))
        # With all slots sorted by length, `_ranks` says which of them the packs take, one pack after the other.
        next_rank = np.cumsum(counts) - counts
        self._ranks = np.empty(len(self._slot_lengths), dtype=np.int32)
        start = 0
        for copies, pack in kinds:
            size = sum(pack.values())
            of_kind = self._ranks[start : start + copies * size].reshape(copies, size)
            column = 0
            for length, number in pack.items():
                taken = np.arange(next_rank[length], next_rank[length] + copies * number)
                of_kind[:, column : column + number] = taken.reshape(copies, number)
                next_rank[length] += copies * number
                column += number
            start += copies * size
        # A narrow type, since NumPy sorts small integers by radix.
        self._narrow_lengths = self._slot_lengths.astype(np.uint16 if max_length < 2**16 else np.uint32)
        self._dealt: tuple[int, int, NDArray[np.int64]] | None = None

    @property
    def num_rows(self) -> int:
        """Packs in an epoch."""
        return len(self._sizes)

    @property
    def share_full(self) -> float:
        """The documents' tokens divided by the capacity of the packs; with a sampler, in the first epoch."""
        documents = self._documents_in(0, np.arange(len(self._slot_lengths)))
        return float(self.lengths[documents].sum() / max(len(self._sizes) * self.max_length, 1))

    @override
    def describe(self) -> dict[str, Any]:
        facts = super().describe()
        del facts["pool"], facts["shuffle"]
        return {**facts, "packing": self.max_length, "packs": len(self._sizes)}

    @override
    def _make_order(self, epoch: int) -> _PackedOrder:
        generator = np.random.default_rng([self.seed, epoch])
        permutation = generator.permutation(len(self._slot_lengths)).astype(np.int32)
        # Slots of equal length are in random order, and so documents share a pack with different ones in every epoch.
        by_length = permutation[np.argsort(self._narrow_lengths[permutation], kind="stable")]
        order = generator.permutation(len(self._sizes))
        sizes = self._sizes[order]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        first = (np.cumsum(self._sizes) - self._sizes)[order]
        slots = by_length[self._ranks[np.arange(len(by_length)) + np.repeat(first - starts[:-1], sizes)]]
        documents = self._documents_in(epoch, slots)

        def sum_of_packs(values: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.add.reduceat(values[documents], starts[:-1]) if len(order) else np.zeros(0, dtype=np.int64)

        supervised = sum_of_packs(self.supervised)
        counts = (supervised, sum_of_packs((self.supervised > 0).astype(np.int64)), sum_of_packs(self.lengths))
        windows = np.arange(0, len(order), self.window_size)
        tokens, sequences, lengths = (np.add.reduceat(c, windows) if len(order) else c for c in counts)
        return _PackedOrder(epoch, documents, tokens, sequences, lengths, starts, supervised)

    @override
    def _select(
        self, order: EpochOrder, window: int, step: int, rank: int
    ) -> tuple[NDArray[np.int64], tuple[int, ...] | None]:
        assert isinstance(order, _PackedOrder)
        if self._dealt is None or self._dealt[:2] != (order.epoch, window):
            first = window * self.window_size
            packs = self._deal(order.supervised[first : first + self.window_size])
            self._dealt = order.epoch, window, np.where(packs < 0, -1, first + packs)
        packs = self._dealt[2][step, rank]
        rows = [order.documents[order.starts[pack] : order.starts[pack + 1]] for pack in packs[packs >= 0]]
        documents = np.concatenate(rows) if rows else order.documents[:0]
        return documents, tuple(len(row) for row in rows)

    def _deal(self, supervised: NDArray[np.int64]) -> NDArray[np.int64]:
        """Distributes the packs of a window over its micro-batches.

        In every round each rank gets one pack. The rounds start with the packs that have the most supervised tokens,
        and within a round the largest pack goes to the rank with the fewest tokens so far. So the totals of two ranks
        never differ by more than the packs of one round do.

        Args:
            supervised: (packs,) supervised tokens of each pack of the window.

        Returns:
            (accumulate, world_size, batch_size): the pack in each row of each micro-batch; -1 for an empty row.
        """
        order = np.argsort(-supervised, kind="stable")
        order = np.concatenate([order, np.full(self.window_size - len(order), -1)])
        tokens = np.where(order < 0, 0, supervised[order])
        dealt = np.empty((self.accumulate, self.world_size, self.batch_size), dtype=np.int64)
        totals = np.zeros(self.world_size, dtype=np.int64)
        for number in range(self.accumulate * self.batch_size):
            packs = slice(number * self.world_size, (number + 1) * self.world_size)
            ranks = np.argsort(totals, kind="stable")
            totals[ranks] += tokens[packs]
            row, step = divmod(number, self.accumulate)
            # Steps are filled back and forth, so that no step always gets the largest packs.
            dealt[step if row % 2 == 0 else self.accumulate - 1 - step, ranks, row] = order[packs]
        return dealt
