"""Reads a stream in blocks of rows. A block is shuffled and packed as a whole, and read again when a run resumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch.utils.data
from torch.utils.data import DataLoader, IterableDataset

from lit_probsft.data.batches.duplicates import occurs_in
from lit_probsft.data.batches.loader import WORKERS
from lit_probsft.data.batches.prepare import Counts
from lit_probsft.data.batches.row_tokenizer import RowTokenizer, as_duplicate
from lit_probsft.data.batches.store import Document
from lit_probsft.data.rows.splits import Item
from lit_probsft.errors import UserError, errors_within


@dataclass
class Block:
    """The documents and counts of a block's rows, or of the rows of one rank or worker.

    Attributes:
        number: of the block, counted from 0.
        position: where the stream continues after the block.
        passes: complete passes over the stream by then.
        documents: the documents; their `row` counts from the block's first row.
        counts: counts of the rows. What is dropped is listed in the first pass only.
        in_validation: number of documents that are also in the validation set.
        error: if set, the rows could not be read or tokenized, and the block is empty.
    """

    number: int
    position: Any = None
    passes: int = 0
    documents: list[Document] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    in_validation: int = 0
    error: UserError | None = None


@dataclass(frozen=True)
class BlockReader:
    """Makes blocks from the rows of a stream.

    Attributes:
        row_tokenizer: source, tokenizer and recipe.
        size: rows of a block, over all ranks.
        rank, world_size: of every `world_size` consecutive rows, this rank tokenizes one. Which one is random (drawn
            from `seed` and the block's number); otherwise each rank could get one source of an alternating mixture.
        worker, num_workers: of the rank's rows, this worker tokenizes every `num_workers`-th.
        validation: digests of the validation set's documents.
        remove_duplicates: drop documents that are also in the validation set.
        seed: of the stream's plan.
    """

    row_tokenizer: RowTokenizer
    size: int
    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1
    validation: frozenset[bytes] = frozenset()
    remove_duplicates: bool = False
    seed: int = 0

    def blocks(self, number: int, position: Any) -> Iterator[Block]:
        """Yields block `number`, whose first row is at `position`, and all later ones; an error ends the iteration."""
        try:
            with self._errors_within_argument():
                stream = self.row_tokenizer.loaded.source.stream(position)
            while True:
                yield self._read(stream, number)
                number += 1
        except UserError as error:
            yield Block(number, error=error)

    def _errors_within_argument(self) -> Any:
        return errors_within(f"data.{self.row_tokenizer.loaded.argument}")

    def _read(self, stream: Any, number: int) -> Block:
        block = Block(number)
        num_groups = -(-self.size // self.world_size)
        offsets = np.random.default_rng([number, self.seed]).integers(self.world_size, size=num_groups).tolist()
        for row in range(self.size):
            with self._errors_within_argument():
                load_row, source, index, passes = stream.next()
            group = row // self.world_size
            if group % self.num_workers == self.worker and (row + offsets[group]) % self.world_size == self.rank:
                with self._errors_within_argument():
                    item = Item(load_row(), source, index)
                self._add(block, item, row, listed=not passes)
        block.position, block.passes = stream.position, stream.passes
        return block

    def _add(self, block: Block, item: Item, row: int, *, listed: bool) -> None:
        outcomes = self.row_tokenizer.tokenize_item(item, row)
        duplicates = [occurs_in(self.validation, outcome.document) for outcome in outcomes]
        block.in_validation += sum(duplicates)
        if self.remove_duplicates:
            outcomes = [
                as_duplicate(outcome) if known else outcome for known, outcome in zip(duplicates, outcomes, strict=True)
            ]
        block.counts.add(outcomes)
        if listed:
            block.counts.list_dropped(outcomes, self.row_tokenizer.loaded, item.source, item.row_index)
        for document in (outcome.document for outcome in outcomes if outcome.document is not None):
            ids, labels = (np.asarray(x, dtype=np.int32) for x in (document.ids, document.labels))
            block.documents.append(document._replace(ids=ids, labels=labels))


class _Blocks(IterableDataset[Block]):
    """The blocks of one worker process, or of this process if there are no workers."""

    def __init__(self, reader: BlockReader, number: int, position: Any) -> None:
        self.reader, self.number, self.position = reader, number, position

    def __iter__(self) -> Iterator[Block]:
        reader = self.reader
        if info := torch.utils.data.get_worker_info():
            reader = replace(reader, worker=info.id, num_workers=info.num_workers)
            read_all_rows()
        return reader.blocks(self.number, self.position)


def read_all_rows() -> None:
    """Make `datasets` read all rows in this worker process.

    By default it gives each worker a part of them. Here every worker goes through all rows, so that the rows of a block
    do not depend on the number of workers.
    """
    torch.utils.data.get_worker_info = lambda: None


def block_loader(reader: BlockReader, number: int, position: Any, num_workers: int) -> DataLoader[Block]:
    """Returns a loader of blocks, which workers make ahead. Each worker gives its part of every block, in turn."""
    options = {**WORKERS, "prefetch_factor": 1} if num_workers else {}
    return DataLoader(_Blocks(reader, number, position), batch_size=None, num_workers=num_workers, **options)


def merge_blocks(parts: list[Block]) -> Block:
    """Joins the parts of a block that several workers have made."""
    first = parts[0]
    error = next((part.error for part in parts if part.error is not None), None)
    if error is not None:
        return Block(first.number, error=error)
    documents = sorted((document for part in parts for document in part.documents), key=lambda document: document.row)
    counts = Counts()
    for part in parts:
        counts.merge(part.counts)
    return replace(first, documents=documents, counts=counts, in_validation=sum(part.in_validation for part in parts))
