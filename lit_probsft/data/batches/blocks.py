"""A stream in blocks of so many rows: what is shuffled and packed together, and read again when a run resumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils import worker

from lit_probsft.data.batches.cache import digest
from lit_probsft.data.batches.loader import WORKERS
from lit_probsft.data.batches.prepare import Counts, Outcome, RowTokenizer
from lit_probsft.data.batches.store import Document
from lit_probsft.data.rows.splits import Item
from lit_probsft.errors import UserError


@dataclass
class Block:
    """What is known of a block's rows, or of a share of them.

    Attributes:
        number: of the block, counted from 0.
        place: where the stream's next row lies behind the block.
        passes: how often the stream has been gone through there.
        documents: what became of the rows; `row` counts from the block's first.
        counts: what became of the others. A row is listed as lost in the first pass only.
        in_validation: documents that are in the validation set too.
        error: why there is nothing.
    """

    number: int
    place: Any = None
    passes: int = 0
    documents: list[Document] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    in_validation: int = 0
    error: UserError | None = None


@dataclass(frozen=True)
class BlockReader:
    """How blocks are made.

    Attributes:
        row_tokenizer: source, tokenizer and recipe.
        size: rows of a block.
        share, shares: of each `shares` rows of a block that follow each other, one is made into a document. Which one
            is drawn, by the block's number: ranks would get a source each of a mixture that takes turns.
        part, parts: of those, every `parts`-th from `part` on.
        known: the digests of the validation set's documents.
        remove: leave out what is in the validation set too.
    """

    row_tokenizer: RowTokenizer
    size: int
    share: int = 0
    shares: int = 1
    part: int = 0
    parts: int = 1
    known: frozenset[bytes] = frozenset()
    remove: bool = False

    def blocks(self, number: int, place: Any) -> Iterator[Block]:
        """Block `number`, whose first row lies at `place`, and all that come after; one with an error is the last."""
        try:
            self.row_tokenizer.check()
            stream = self._source(lambda source: source.stream(place))
            while True:
                yield self._block(stream, number)
                number += 1
        except UserError as error:
            yield Block(number, error=error)

    def _source(self, call: Any) -> Any:
        try:
            return call(self.row_tokenizer.loaded.source)
        except UserError as error:
            raise error.within(f"data.{self.row_tokenizer.loaded.argument}") from error

    def _block(self, stream: Any, number: int) -> Block:
        block = Block(number)
        turns = np.random.default_rng(number).integers(self.shares, size=-(-self.size // self.shares)).tolist()
        for row in range(self.size):
            thunk, source, place, passes = self._source(lambda _: stream.next())
            turn = row // self.shares
            if turn % self.parts == self.part and (row + turns[turn]) % self.shares == self.share:
                item = Item(self._source(lambda _, thunk=thunk: thunk()), source, place)
                self._add(block, item, row, listed=not passes)
        block.place, block.passes = stream.position, stream.passes
        return block

    def _add(self, block: Block, item: Item, row: int, *, listed: bool) -> None:
        outcome, counts = self.row_tokenizer.of(item, row), block.counts
        if outcome.document is not None and self.known:
            known = digest(outcome.document.ids, outcome.document.labels) in self.known
            block.in_validation += known
            if known and self.remove:
                outcome = Outcome(None, lost="dropped", reason="data.duplicates: it is in data.validation too")
        counts.add(outcome)
        if outcome.document is not None:
            ids, labels = (np.asarray(x, dtype=np.int32) for x in (outcome.document.ids, outcome.document.labels))
            block.documents.append(outcome.document._replace(ids=ids, labels=labels))
        elif listed:
            counts.lose(outcome, self.row_tokenizer.loaded, (item.source, item.row_index))


class _Feed(IterableDataset[Block]):
    """The blocks of one worker process, or of this one."""

    def __init__(self, reader: BlockReader, number: int, place: Any) -> None:
        self.reader, self.number, self.place = reader, number, place

    def __iter__(self) -> Iterator[Block]:
        info, reader = worker.get_worker_info(), self.reader
        if info is not None:
            # `datasets` would give each worker a part of the rows; every one of them has to see where the others are.
            worker._worker_info = None
            # A part of this rank's share, which is the same however many workers there are.
            reader = replace(reader, part=info.id, parts=info.num_workers)
        return reader.blocks(self.number, self.place)


def block_loader(reader: BlockReader, number: int, place: Any, num_workers: int) -> DataLoader[Block]:
    """A loader of blocks, which worker processes make ahead; `together` takes its items."""
    options = {**WORKERS, "prefetch_factor": 1} if num_workers else {}
    return DataLoader(_Feed(reader, number, place), batch_size=None, num_workers=num_workers, **options)


def together(parts: list[Block]) -> Block:
    """The parts of a block that several workers have made, as one would have made it."""
    first = parts[0]
    error = next((part.error for part in parts if part.error is not None), None)
    if error is not None:
        return Block(first.number, error=error)
    whole = replace(first, documents=[], counts=Counts(), in_validation=sum(part.in_validation for part in parts))
    whole.documents = sorted(
        (document for part in parts for document in part.documents), key=lambda document: document.row
    )
    for part in parts:
        whole.counts.merge(part.counts)
    return whole
