"""Several documents to a row: packs of at most `max_length` tokens, nearly full, as a plan of whole windows.

Which lengths share a pack is decided once, over the whole data set: the longest document first, then the longest that
fits, and for the last two the pair that fills the rest best. Only lengths matter for that, and there are at most
`max_length` of them: a pack found once is repeated as often as there are documents of its lengths, so that a million
documents take a fraction of a second. An epoch decides which document stands for which length, and the order of the
packs; their number never changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_probsft.data.batches.plan import Plan, _Order
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from lit_probsft.data.batches.epoch_sampling import EpochSampler

_PAIR_SLACK = 32
"""A pair is taken for the end of a pack if it leaves fewer tokens empty than this, and fewer than a single document."""


def packs_of_lengths(counts: ArrayLike, max_length: int) -> list[tuple[int, dict[int, int]]]:
    """Packs for a data set of which only the lengths are known.

    Args:
        counts: (max_length + 1,) how many documents have length 0, 1, ...; none has length 0.
        max_length: most tokens of a pack.

    Returns:
        Kinds of packs: how many there are of it, and the documents in each, {length: how many}. Together they hold
        every document once.
    """
    left = [int(count) for count in np.asarray(counts)]
    # Which lengths there are, as the bits of an integer: bit l for length l; mirrored, bit max_length - l. The
    # lengths whose partner in a pair of a given total is there too are then one shift and one conjunction away.
    present = sum(1 << length for length, count in enumerate(left) if count)
    mirrored = sum(1 << max_length - length for length, count in enumerate(left) if count)
    kinds = []
    while present:
        pack = _fill(left, present, mirrored, max_length)
        times = min(left[length] // number for length, number in pack.items())
        kinds.append((times, pack))
        for length, number in pack.items():
            left[length] -= times * number
            if not left[length]:
                present &= ~(1 << length)
                mirrored &= ~(1 << max_length - length)
    return kinds


def _fill(left: list[int], present: int, mirrored: int, max_length: int) -> dict[int, int]:
    """One pack, {length: how many}, from `left[l]` documents of each length l."""
    pack: dict[int, int] = {}
    room = max_length
    while fitting := present & ((2 << room) - 1):
        longest, shortest = fitting.bit_length() - 1, (fitting & -fitting).bit_length() - 1
        chosen = [longest]
        if pack and longest < room < longest + 2 * shortest:  # what comes after the longest would be the last
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
class _PackedOrder(_Order):
    """`documents` lie pack after pack: pack i, the i-th of the epoch, has those from `starts[i]` to `starts[i + 1]`,
    and `supervised[i]` supervised tokens."""

    starts: NDArray[np.int64]
    supervised: NDArray[np.int64]


class PackedPlan(Plan):
    """The order of a data set whose documents share rows.

    A row is a pack of whole documents with at most `max_length` tokens together. A window is G = batch_size *
    accumulate * world_size packs, drawn at random; what is in it depends on G, never on its factors. Within a window
    packs are dealt so that ranks have nearly equally many supervised tokens, in sum and at each step. The last
    window is filled up with empty packs.

    Args:
        lengths: as in `Plan`.
        supervised: as there.
        max_length: most tokens of a pack; no document is longer.
        batch_size: packs in a full micro-batch.
        accumulate: as there.
        world_size: as there.
        seed: as there.
        sampler: as there.
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
        counts = np.bincount(self._places, minlength=max_length + 1)
        kinds = packs_of_lengths(counts, max_length)
        times_of, sizes = np.array([(times, sum(pack.values())) for times, pack in kinds]).reshape(-1, 2).T.astype(int)
        self._sizes = np.repeat(sizes, times_of)
        # Where the documents of the packs, one after the other, stand among all (places of) documents in the order of
        # length.
        first = np.cumsum(counts) - counts
        self._order_of_packs = np.empty(len(self._places), dtype=np.int32)
        start = 0
        for times, pack in kinds:
            size = sum(pack.values())
            of_kind = self._order_of_packs[start : start + times * size].reshape(times, size)
            column = 0
            for length, number in pack.items():
                taken = np.arange(first[length], first[length] + times * number)
                of_kind[:, column : column + number] = taken.reshape(times, number)
                first[length] += times * number
                column += number
            start += times * size
        # Small integers are sorted by radix.
        self._lengths = self._places.astype(np.uint16 if max_length < 2**16 else np.uint32)
        self._dealt: tuple[int, int, NDArray[np.int64]] | None = None

    @property
    def num_rows(self) -> int:
        """Packs in an epoch."""
        return len(self._sizes)

    @property
    def share_full(self) -> float:
        """Documents' tokens, divided by what the packs could hold; where documents take turns, in the first epoch."""
        return float(
            self.lengths[self._visited(0, np.arange(len(self._places)))].sum()
            / max(len(self._sizes) * self.max_length, 1)
        )

    def describe(self) -> dict[str, Any]:
        """The plan in plain data, for the record of a run."""
        facts = super().describe()
        del facts["pool"], facts["shuffle"]
        return {**facts, "packing": self.max_length, "packs": len(self._sizes)}

    def _arranged(self, epoch: int) -> _PackedOrder:
        generator = np.random.default_rng([self.seed, epoch])
        permutation = generator.permutation(len(self._places)).astype(np.int32)
        # By length; chance decides among equals, and so who shares a pack with whom.
        by_length = permutation[np.argsort(self._lengths[permutation], kind="stable")]
        order = generator.permutation(len(self._sizes))
        sizes = self._sizes[order]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        first = (np.cumsum(self._sizes) - self._sizes)[order]
        places = by_length[self._order_of_packs[np.arange(len(by_length)) + np.repeat(first - starts[:-1], sizes)]]
        documents = self._visited(epoch, places)

        def summed(values: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.add.reduceat(values[documents], starts[:-1]) if len(order) else np.zeros(0, dtype=np.int64)

        supervised = summed(self.supervised)
        counts = (supervised, summed((self.supervised > 0).astype(np.int64)), summed(self.lengths))
        windows = np.arange(0, len(order), self.window_size)
        tokens, sequences, lengths = (np.add.reduceat(c, windows) if len(order) else c for c in counts)
        return _PackedOrder(epoch, documents, tokens, sequences, lengths, starts, supervised)

    def _chosen(
        self, order: _Order, window: int, step: int, rank: int
    ) -> tuple[NDArray[np.int64], tuple[int, ...] | None]:
        assert isinstance(order, _PackedOrder)
        if self._dealt is None or self._dealt[:2] != (order.epoch, window):
            first = window * self.window_size
            shares = self._deal(order.supervised[first : first + self.window_size])
            self._dealt = order.epoch, window, np.where(shares < 0, -1, first + shares)
        packs = self._dealt[2][step, rank]
        packs = packs[packs >= 0]
        places = [order.documents[order.starts[pack] : order.starts[pack + 1]] for pack in packs]
        documents = np.concatenate(places) if places else order.documents[:0]
        return documents, tuple(len(place) for place in places)

    def _deal(self, supervised: NDArray[np.int64]) -> NDArray[np.int64]:
        """(accumulate, world_size, batch_size) places in a window for the packs with these supervised tokens; -1 is no
        pack.

        One pack to each rank at a time, those with most tokens first, the largest to the rank that has least so far:
        ranks then never differ by more than the packs of one round do.
        """
        order = np.argsort(-supervised, kind="stable")
        order = np.concatenate([order, np.full(self.window_size - len(order), -1)])
        tokens = np.where(order < 0, 0, supervised[order])
        dealt = np.empty((self.accumulate, self.world_size, self.batch_size), dtype=np.int64)
        sums = np.zeros(self.world_size, dtype=np.int64)
        for turn in range(self.accumulate * self.batch_size):
            packs = slice(turn * self.world_size, (turn + 1) * self.world_size)
            ranks = np.argsort(sums, kind="stable")
            sums[ranks] += tokens[packs]
            row, step = divmod(turn, self.accumulate)
            # There and back again: no step gets the largest of every round.
            dealt[step if row % 2 == 0 else self.accumulate - 1 - step, ranks, row] = order[packs]
        return dealt
