"""Which documents meet in which micro-batch, on which rank, at which step.

A pure function of the documents' lengths, the number of sequences in an optimizer step, the seed and the epoch. Ranks
agree without talking, the number of supervised tokens of every step is known in advance, and a run that resumes reaches
its place in constant time.
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
    """The documents of one forward pass on one rank, and what the whole optimizer step holds.

    Attributes:
        documents: indices, shortest document first (row after row where they are packed); may be empty in the last
            window of an epoch.
        window_tokens: supervised tokens of the window, over all its micro-batches and ranks.
        window_sequences: documents of the window that have a supervised token.
        window_length: all tokens of the window, prompts included.
        packs: how many of the documents share the first row, the second ...; None where each has a row of its own.
    """

    documents: tuple[int, ...]
    window_tokens: int
    window_sequences: int
    window_length: int
    packs: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Order:
    """One epoch: `documents` (n,), window after window, and per window the three counts."""

    epoch: int
    documents: NDArray[Any]
    tokens: NDArray[np.int64]
    sequences: NDArray[np.int64]
    lengths: NDArray[np.int64]


class Plan:
    """The order of a data set for any epoch.

    A window is one optimizer step: G = batch_size * accumulate * world_size documents, all of them visited once an
    epoch. What is in a window depends on G, never on its factors. Documents of similar length meet: the epoch's
    permutation is cut into pools of `pool` windows, each pool is sorted by length and cut into windows, and the windows
    are shuffled. The one incomplete window, a random remainder, comes last and is spread over its micro-batches, some
    of which may be empty: they run all the same, so that every rank takes part in every step.

    Args:
        lengths: (n,) tokens of each document.
        supervised: (n,) supervised tokens of each document, counted after the shift (`labels[1:] != -100`).
        batch_size: documents in a full micro-batch.
        accumulate: micro-batches per optimizer step on one rank.
        world_size: ranks that see different data.
        seed: of the permutation; epochs differ by themselves.
        shuffle: False sorts all documents by length instead (for evaluation). The windows then come in an order drawn
            from `seed` that no epoch changes, so that the first few are a fair sample of all lengths.
        pool: windows that are sorted together; 0 leaves windows as the permutation fills them. More wastes less on
            padding and mixes lengths less within a step.
        sampler: which documents an epoch visits; by default each of them once.
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
                f"lengths and supervised: two equal (n,), got {self.lengths.shape}, {self.supervised.shape}"
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
        # What is arranged: the documents, or the places that they take by turns.
        self._places = self.lengths if sampler is None else sampler.lengths
        self._order: _Order | None = None

    @property
    def num_rows(self) -> int:
        """Rows of an epoch's micro-batches, padding rows not counted: the documents, where they share none."""
        return len(self._places)

    @property
    def window_size(self) -> int:
        """G: rows in a complete window."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def num_windows(self) -> int:
        """Optimizer steps in an epoch, the incomplete one included."""
        return -(-self.num_rows // self.window_size)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one rank in an epoch; the same for every rank, and a multiple of `accumulate`."""
        return self.num_windows * self.accumulate

    def micro_batch(self, epoch: int, index: int, rank: int = 0) -> MicroBatch:
        """What `rank` works on at its `index`-th micro-batch of `epoch`. Constant time after an epoch's first call."""
        if not (0 <= index < self.num_micro_batches and 0 <= rank < self.world_size and epoch >= 0):
            raise IndexError(f"no micro-batch {index} of epoch {epoch} on rank {rank}")
        order = self._epoch_order(epoch)
        window, step = divmod(index, self.accumulate)
        documents, packs = self._chosen(order, window, step, rank)
        return MicroBatch(
            tuple(documents.tolist()),
            int(order.tokens[window]),
            int(order.sequences[window]),
            int(order.lengths[window]),
            packs,
        )

    def window_counts(self, epoch: int) -> NDArray[np.int64]:
        """(windows, 3): supervised tokens, documents that have one, and all tokens of each window of an epoch."""
        order = self._epoch_order(epoch)
        return np.stack([order.tokens, order.sequences, order.lengths], axis=-1)

    def describe(self) -> dict[str, Any]:
        """The plan in plain data, for the record of a run."""
        names = ("batch_size", "accumulate", "world_size", "seed", "shuffle", "pool", "window_size", "num_windows")
        facts = {"documents": len(self.lengths), "packing": None, **{name: getattr(self, name) for name in names}}
        return facts if self.sampler is None else {**facts, "visits": self.sampler.describe()}

    def _epoch_order(self, epoch: int) -> _Order:
        epoch = epoch if self.shuffle else 0
        if self._order is None or self._order.epoch != epoch:
            self._order = self._arranged(epoch)
        return self._order

    def _chosen(self, order: _Order, window: int, step: int, rank: int) -> tuple[NDArray[Any], tuple[int, ...] | None]:
        """The documents of a micro-batch, and how they share its rows."""
        # Neighbours in length go to different ranks of one step: ranks then wait for each other least.
        place = step * self.world_size + rank
        start = window * self.window_size
        size = min(self.window_size, self.num_rows - start)
        least, more = divmod(size, self.accumulate * self.world_size)
        first = start + place * least + min(place, more)
        return order.documents[first : first + least + (place < more)], None

    def _arranged(self, epoch: int) -> _Order:
        documents = self._visited(epoch, self._arrange(np.random.default_rng([self.seed, epoch])))
        starts = np.arange(0, len(documents), self.window_size)
        supervised = self.supervised[documents]
        if len(documents):
            tokens = np.add.reduceat(supervised, starts)
            lengths = np.add.reduceat(self.lengths[documents], starts)
            sequences = np.add.reduceat((supervised > 0).astype(np.int64), starts)
        else:
            tokens = sequences = lengths = np.zeros(0, dtype=np.int64)
        return _Order(epoch, documents, tokens, sequences, lengths)

    def _visited(self, epoch: int, places: NDArray[Any]) -> NDArray[Any]:
        """Who takes these places."""
        return places if self.sampler is None else self.sampler.documents(epoch)[places]

    def _arrange(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """All places: windows one after the other, each sorted by length."""
        count, size = self.num_rows, self.window_size
        whole = count // size
        permutation = generator.permutation(count) if self.shuffle else np.argsort(self._places, kind="stable")
        # The remainder is cut off before the sorting: it would be the longest documents of a pool otherwise.
        body, tail = permutation[: whole * size], permutation[whole * size :]
        if self.shuffle:
            # With no pool each window is a group of its own, so that either way its documents end up sorted.
            group = np.arange(len(body)) // (size * max(self.pool, 1))
            body = body[np.lexsort((self._places[body], group))]
            tail = tail[np.argsort(self._places[tail], kind="stable")]
        body = body.reshape(whole, size)[generator.permutation(whole)].reshape(-1)
        return np.concatenate([body, tail])
