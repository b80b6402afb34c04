"""Decides which documents form each micro-batch: for every optimizer step, on every rank.

A plan is a pure function of the documents' lengths, the number of sequences in an optimizer step, the seed and the
epoch. So ranks agree without communication, the number of supervised tokens of every step is known in advance, and a
resumed run finds its position in constant time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from lit_probsft.data.batches.epoch_sampling import EpochSampler


@dataclass(frozen=True)
class MicroBatch:
    """The documents of one forward pass on one rank, and the counts of the whole optimizer step.

    Attributes:
        documents: indices, shortest document first (row after row if packed); may be empty in the last window of an
            epoch.
        window_tokens: supervised tokens of the window, over all its micro-batches and ranks.
        window_sequences: documents of the window that have a supervised token.
        window_length: all tokens of the window, prompts included.
        packs: number of documents in the first row, the second ...; None if each document has its own row.
    """

    documents: tuple[int, ...]
    window_tokens: int
    window_sequences: int
    window_length: int
    packs: tuple[int, ...] | None = None


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    Attributes:
        epoch: its number.
        documents: (n,) indices, window after window.
        tokens, sequences, lengths: (windows,) the counts of each window, as in `MicroBatch`.
    """

    epoch: int
    documents: NDArray[Any]
    tokens: NDArray[np.int64]
    sequences: NDArray[np.int64]
    lengths: NDArray[np.int64]


class Plan:
    """The order of a data set in any epoch.

    A window is one optimizer step: G = batch_size * accumulate * world_size documents. An epoch visits every document
    once. The content of a window depends on G, not on its factors. Documents of similar length share a window: the
    epoch's permutation is cut into pools of `pool` windows, each pool is sorted by length and cut into windows, and the
    windows are shuffled. The incomplete window, a random remainder, comes last. It is spread over its micro-batches.
    Some of them may be empty; they still run, so that every rank takes part in every step.

    Args:
        lengths: (n,) tokens of each document.
        supervised: (n,) supervised tokens of each document, counted after the shift (`labels[1:] != -100`).
        batch_size: documents in a full micro-batch.
        accumulate: micro-batches per optimizer step on one rank.
        world_size: number of ranks that see different data.
        seed: seeds the permutation; each epoch has its own.
        shuffle: if False, sort all documents by length (for evaluation). The order of the windows is then drawn from
            `seed` and is the same in every epoch, so that the first few windows are a fair sample of all lengths.
        pool: number of windows that are sorted together; 0 keeps windows as the permutation fills them. A larger pool
            wastes less on padding, and mixes lengths less within a step.
        sampler: chooses the documents of an epoch; by default each document once.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        supervised: ArrayLike,
        *,
        batch_size: int,
        accumulate: int = 1,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        pool: int = 50,
        sampler: EpochSampler | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.supervised = np.asarray(supervised, dtype=np.int64)
        if self.lengths.ndim != 1 or self.lengths.shape != self.supervised.shape:
            raise ValueError(
                "lengths and supervised: expected two arrays of shape (n,), got shapes "
                f"{self.lengths.shape} and {self.supervised.shape}"
            )
        for argument, value, least in (
            ("batch_size", batch_size, 1),
            ("accumulate", accumulate, 1),
            ("world_size", world_size, 1),
            ("seed", seed, 0),
            ("pool", pool, 0),
        ):
            if value < least:
                raise UserError(argument, f"expected at least {least}, got {value}")
        self.batch_size, self.accumulate, self.world_size = batch_size, accumulate, world_size
        self.seed, self.shuffle, self.pool = seed, shuffle, pool
        self.sampler = sampler
        # The plan orders slots. Without a sampler, slot i always shows document i.
        self._slot_lengths = self.lengths if sampler is None else sampler.lengths
        self._order: EpochOrder | None = None

    @property
    def num_rows(self) -> int:
        """Rows in an epoch's micro-batches, without padding rows: one per document unless documents are packed."""
        return len(self._slot_lengths)

    @property
    def window_size(self) -> int:
        """G: rows in a complete window."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def num_windows(self) -> int:
        """Optimizer steps in an epoch, including the incomplete one."""
        return -(-self.num_rows // self.window_size)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one rank in an epoch; the same for every rank, and a multiple of `accumulate`."""
        return self.num_windows * self.accumulate

    def micro_batch(self, epoch: int, index: int, rank: int = 0) -> MicroBatch:
        """Returns micro-batch `index` of `epoch` on `rank`. Takes constant time after the first call for an epoch."""
        if not (0 <= index < self.num_micro_batches and 0 <= rank < self.world_size and epoch >= 0):
            raise IndexError(f"no micro-batch {index} of epoch {epoch} on rank {rank}")
        order = self._epoch_order(epoch)
        window, step = divmod(index, self.accumulate)
        documents, packs = self._select(order, window, step, rank)
        return MicroBatch(
            tuple(documents.tolist()),
            int(order.tokens[window]),
            int(order.sequences[window]),
            int(order.lengths[window]),
            packs,
        )

    def window_counts(self, epoch: int) -> NDArray[np.int64]:
        """Returns (windows, 3): supervised tokens, supervised documents and all tokens of each window of an epoch."""
        order = self._epoch_order(epoch)
        return np.stack([order.tokens, order.sequences, order.lengths], axis=-1)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data, for the record of a run."""
        names = ("batch_size", "accumulate", "world_size", "seed", "shuffle", "pool", "window_size", "num_windows")
        facts = {"documents": len(self.lengths), "packing": None, **{name: getattr(self, name) for name in names}}
        return facts if self.sampler is None else {**facts, "visits": self.sampler.describe()}

    def _epoch_order(self, epoch: int) -> EpochOrder:
        epoch = epoch if self.shuffle else 0
        if self._order is None or self._order.epoch != epoch:
            self._order = self._make_order(epoch)
        return self._order

    def _select(
        self, order: EpochOrder, window: int, step: int, rank: int
    ) -> tuple[NDArray[Any], tuple[int, ...] | None]:
        """The documents of a micro-batch, and the number of them in each row if they are packed."""
        # Neighbours in length go to different ranks of one step, so that ranks wait little for each other.
        share = step * self.world_size + rank
        start = window * self.window_size
        size = min(self.window_size, self.num_rows - start)
        least, rest = divmod(size, self.accumulate * self.world_size)
        first = start + share * least + min(share, rest)
        return order.documents[first : first + least + (share < rest)], None

    def _make_order(self, epoch: int) -> EpochOrder:
        documents = self._documents_in(epoch, self._ordered_slots(np.random.default_rng([self.seed, epoch])))
        starts = np.arange(0, len(documents), self.window_size)
        supervised = self.supervised[documents]
        if len(documents):
            tokens = np.add.reduceat(supervised, starts)
            lengths = np.add.reduceat(self.lengths[documents], starts)
            sequences = np.add.reduceat((supervised > 0).astype(np.int64), starts)
        else:
            tokens = sequences = lengths = np.zeros(0, dtype=np.int64)
        return EpochOrder(epoch, documents, tokens, sequences, lengths)

    def _documents_in(self, epoch: int, slots: NDArray[Any]) -> NDArray[Any]:
        """The documents that these slots show in an epoch."""
        return slots if self.sampler is None else self.sampler.documents(epoch)[slots]

    def _ordered_slots(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """All slots, window after window, each window sorted by length."""
        count, size = self.num_rows, self.window_size
        complete = count // size
        permutation = generator.permutation(count) if self.shuffle else np.argsort(self._slot_lengths, kind="stable")
        # Split off the remainder before sorting; afterwards it would be the longest documents of a pool.
        body, tail = permutation[: complete * size], permutation[complete * size :]
        if self.shuffle:
            # Without pools each window is a group of its own, so that its documents are sorted in either case.
            group = np.arange(len(body)) // (size * max(self.pool, 1))
            body = body[np.lexsort((self._slot_lengths[body], group))]
            tail = tail[np.argsort(self._slot_lengths[tail], kind="stable")]
        body = body.reshape(complete, size)[generator.permutation(complete)].reshape(-1)
        return np.concatenate([body, tail])
