"""Tokenizes the rows of a split, in one process or several, and counts what happens to them."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lit_probsft.data.batches.duplicates import occurs_in
from lit_probsft.data.batches.row_tokenizer import Outcome, Recipe, RowTokenizer, as_duplicate
from lit_probsft.data.batches.store import Document
from lit_probsft.data.rows.splits import LoadedSource, Split
from lit_probsft.errors import UserError
from lit_probsft.parallel.parent import run_in_worker

VERSION = 7
"""Part of every cache key. Raise it if the same rows and options give other tokens."""

MAX_UNUSED = 100
"""The most unused columns that are named; rows of JSON may all have different ones."""

_CHUNK = 64


@dataclass
class Counts:
    """Counts rows, and what happened to their documents.

    A row is one document unless it is split.

    Attributes:
        rows: all rows.
        dropped: documents that are too long, or duplicates.
        truncated: documents that are cut to the maximum length.
        skipped: unusable rows.
        split_rows: rows that are split, because the template rewrites earlier turns.
        split_documents: documents of these rows.
        with_control_tokens: rows whose texts contain control tokens, which are written as ordinary text.
        with_reasoning: conversations with reasoning in a supervised turn.
        without_reasoning: conversations without any.
        dropped_rows: for each document that is dropped, and each row that is skipped, `row`, `what` (`dropped` or
            `skipped`) and `reason`; `document` (counted from 0) in a row that is split, and `source` if there are
            several.
        unused: columns and keys of turns that nothing reads, at most `MAX_UNUSED` of them.
    """

    rows: int = 0
    dropped: int = 0
    truncated: int = 0
    skipped: int = 0
    split_rows: int = 0
    split_documents: int = 0
    with_control_tokens: int = 0
    with_reasoning: int = 0
    without_reasoning: int = 0
    dropped_rows: list[dict[str, Any]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Counts a row."""
        self.rows += 1
        self.with_control_tokens += outcomes[0].with_control_tokens
        self.with_reasoning += outcomes[0].reasons is True
        self.without_reasoning += outcomes[0].reasons is False
        self.unused = merge_unused(self.unused, outcomes[0].unused)
        if len(outcomes) > 1:
            self.split_rows += 1
            self.split_documents += len(outcomes)
        for outcome in outcomes:
            if outcome.status != "kept":
                setattr(self, outcome.status, getattr(self, outcome.status) + 1)

    def list_dropped(self, outcomes: Sequence[Outcome], loaded: LoadedSource, source: int, row: int) -> None:
        """Adds what is dropped or skipped of a row to `dropped_rows`: row `row` of part `source`."""
        origin = {"source": loaded.source.parts[source]} if loaded.source.parts else {}
        for number, outcome in enumerate(outcomes):
            if outcome.document is None:
                which = {"row": row, "document": number} if len(outcomes) > 1 else {"row": row}
                self.dropped_rows.append({**origin, **which, "what": outcome.status, "reason": outcome.reason})

    def merge(self, other: Counts) -> None:
        """Adds the counts and rows of another."""
        for name in vars(self).keys() - {"unused"}:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unused = merge_unused(self.unused, other.unused)


def merge_unused(names: list[str], others: Sequence[str]) -> list[str]:
    """Returns the names with those of the others that are new, at most `MAX_UNUSED`."""
    new = [name for name in others if name not in names]
    return (names + new)[:MAX_UNUSED] if new else names


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
        UserError: a row is unusable; the message gives its index in the source.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    indices, name = split.indices(), split.loaded.argument
    bar = tqdm(
        total=len(indices), desc=f"tokenizing data.{name}", unit="row", delay=3, disable=not progress, leave=False
    )
    row_tokenizer = RowTokenizer(split.loaded, tokenizer, recipe)
    with bar:
        if num_proc is None or num_proc <= 1:
            rows: Iterator[list[Outcome]] = map(row_tokenizer.tokenize_row, indices)
        else:
            rows = _in_processes(row_tokenizer, indices, num_proc)
        for index, outcomes in zip(indices, rows, strict=True):
            bar.update()
            outcomes = [
                as_duplicate(outcome) if occurs_in(without, outcome.document) else outcome for outcome in outcomes
            ]
            counts.add(outcomes)
            counts.list_dropped(outcomes, split.loaded, *split.loaded.locate(index))
            yield from (outcome.document for outcome in outcomes if outcome.document is not None)


def _in_processes(row_tokenizer: RowTokenizer, indices: Sequence[int], num_proc: int) -> Iterator[list[Outcome]]:
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    chunks = [list(indices[start : start + _CHUNK]) for start in range(0, len(indices), _CHUNK)]
    # Each process reads the source itself, which is cheaper than sending rows. The processes are spawned, because a
    # tokenizer's threads do not survive a fork. The tokenizer is sent as bytes: to unpickle it a process imports
    # transformers first, and the next process would not start before that.
    worker = replace(row_tokenizer, loaded=unloaded(row_tokenizer.loaded))
    start = (pickle.dumps(partial(_start_worker, worker)),)
    spawn = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_proc, spawn, initializer=run_in_worker, initargs=start)
    try:
        for rows in executor.map(_tokenize_chunk, chunks):
            yield from rows
    except BrokenProcessPool as error:
        raise UserError(
            "data.num_proc",
            "a tokenizing process failed to start or died: it may have run out of memory, or could not import what the "
            "source or its row function needs (see its own message above); without num_proc, rows are tokenized in "
            "this process",
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)  # after an error or a signal, nobody waits for the rest


_worker: RowTokenizer


def _start_worker(row_tokenizer: RowTokenizer) -> None:
    global _worker
    _worker = row_tokenizer


def _tokenize_chunk(indices: list[int]) -> list[list[Outcome]]:
    return [_worker.tokenize_row(index) for index in indices]
