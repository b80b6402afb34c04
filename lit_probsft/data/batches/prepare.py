"""Tokenizes the rows of a split, in one process or several, and counts what happens to them."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lit_probsft.data.batches.duplicates import occurs_in
from lit_probsft.data.batches.row_tokenizer import DUPLICATE, Outcome, Recipe, RowTokenizer
from lit_probsft.data.batches.store import Document
from lit_probsft.data.rows.splits import LoadedSource, Split
from lit_probsft.errors import UserError
from lit_probsft.parallel.parent import exit_with_parent

VERSION = 6
"""Part of every cache key. Raise it if the same rows and options give other tokens, or other files."""

_CHUNK = 64


@dataclass
class Counts:
    """Counts rows by what happened to them.

    Attributes:
        rows: all rows.
        dropped: rows that are too long, or duplicates.
        truncated: rows that are cut to the maximum length.
        skipped: unusable rows.
        dropped_rows: for each row that is dropped or skipped, `row`, `what` (`dropped` or `skipped`) and `reason`, and
            `source` if there are several.
    """

    rows: int = 0
    dropped: int = 0
    truncated: int = 0
    skipped: int = 0
    dropped_rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Counts a row."""
        self.rows += 1
        if outcome.status != "kept":
            setattr(self, outcome.status, getattr(self, outcome.status) + 1)

    def list_row(self, outcome: Outcome, loaded: LoadedSource, source: int, row: int) -> None:
        """Adds a dropped or skipped row to `dropped_rows`: row `row` of part `source`."""
        origin = {"source": loaded.source.parts[source]} if loaded.source.parts else {}
        self.dropped_rows.append({**origin, "row": row, "what": outcome.status, "reason": outcome.reason})

    def merge(self, other: Counts) -> None:
        """Adds the counts and rows of another."""
        for name in ("rows", "truncated", "dropped", "skipped", "dropped_rows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def unloaded(loaded: LoadedSource, *, skips: bool | None = None) -> LoadedSource:
    """The same source without its rows, to read them again, or in another process."""
    return LoadedSource(loaded.source, loaded.argument, skips=loaded.skips if skips is None else skips)


def tokenize_rows(
    split: Split,
    tokenizer: Any,
    recipe: Recipe,
    counts: Counts,
    *,
    without: frozenset[bytes] = frozenset(),
    num_proc: int | None = None,
    progress: bool = True,
) -> Iterator[Document]:
    """Yields the documents of a split, in the order of its rows.

    Each of `num_proc` processes loads the source itself. A progress bar appears after a few seconds.

    Args:
        split: the rows.
        tokenizer: a fast tokenizer.
        recipe: how rows are tokenized.
        counts: updated on the way; complete after the last document.
        without: digests of documents to drop.
        num_proc: number of processes.
        progress: show the bar.

    Raises:
        UserError: the template is broken, or a row is unusable; the message gives its index in the source.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    indices, name = split.indices(), split.loaded.argument
    bar = tqdm(
        total=len(indices), desc=f"tokenizing data.{name}", unit="row", delay=3, disable=not progress, leave=False
    )
    row_tokenizer = RowTokenizer(split.loaded, tokenizer, recipe)
    row_tokenizer.check_template()
    with bar:
        if num_proc is None or num_proc <= 1:
            outcomes: Iterator[Outcome] = map(row_tokenizer.tokenize_row, indices)
        else:
            outcomes = _in_processes(row_tokenizer, indices, num_proc)
        for index, outcome in zip(indices, outcomes, strict=True):
            bar.update()
            if outcome.document is not None and occurs_in(without, outcome.document):
                outcome = DUPLICATE
            counts.add(outcome)
            if outcome.document is None:
                counts.list_row(outcome, split.loaded, *split.loaded.locate(index))
            else:
                yield outcome.document


def _in_processes(row_tokenizer: RowTokenizer, indices: Sequence[int], num_proc: int) -> Iterator[Outcome]:
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    chunks = [list(indices[start : start + _CHUNK]) for start in range(0, len(indices), _CHUNK)]
    # Each process reads the source itself, which is cheaper than sending rows. The processes are spawned, because a
    # tokenizer's threads do not survive a fork. The tokenizer is sent as bytes: to unpickle it a process imports
    # transformers first, and the next process would not start before that.
    arguments = (pickle.dumps(replace(row_tokenizer, loaded=unloaded(row_tokenizer.loaded))),)
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(num_proc, spawn, initializer=_start_worker, initargs=arguments) as executor:
            for outcomes in executor.map(_tokenize_chunk, chunks):
                yield from outcomes
    except BrokenProcessPool as error:
        raise UserError(
            "data.num_proc",
            "a tokenizing process failed to start or died: it may have run out of memory, or could not import what the "
            "source or its row function needs (see its own message above); without num_proc, rows are tokenized in "
            "this process",
        ) from error


_worker: RowTokenizer


def _start_worker(row_tokenizer: bytes) -> None:
    global _worker
    exit_with_parent()
    _worker = pickle.loads(row_tokenizer)


def _tokenize_chunk(indices: list[int]) -> list[Outcome]:
    return [_worker.tokenize_row(index) for index in indices]
