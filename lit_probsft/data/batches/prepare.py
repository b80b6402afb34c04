"""From the rows of a source to tokenized documents, in one process or several, with every loss counted."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_probsft.data.batches.store import Document
from lit_probsft.data.rows.formats import Conversation, Example, Text
from lit_probsft.data.rows.splits import Item, LoadedSource, Split
from lit_probsft.data.tokens.rendering import check_template
from lit_probsft.data.tokens.tokenization import (
    IGNORED,
    Reasoning,
    Turns,
    tokenize_conversation,
    tokenize_prompt,
    tokenize_text,
)
from lit_probsft.errors import UserError
from lit_probsft.parallel.parent import exit_with_parent

VERSION = 4
"""Part of every cache key: raise it when the same rows and options should give other tokens."""

_CHUNK = 64


@dataclass(frozen=True)
class Recipe:
    """What, beside rows and tokenizer, decides the tokens.

    Attributes:
        prompts: only what comes before the last answer, for generation; nothing is cut, dropped or checked then.
    """

    chat_template: str | None = None
    plain_text: bool = False
    require_end_of_turn: bool = True
    max_length: int | None = None
    overflow: str = "error"
    prompts: bool = False
    turns: Turns = "all"
    reasoning: Reasoning = "learn"
    on_bad_row: str = "error"


@dataclass
class Counts:
    """How many rows there were, and what became of those that are not whole documents now.

    Attributes:
        dropped: too long, or left out for what they are (see `documents`).
        skipped: could not be used.
        dropped_rows: for each row dropped or skipped `{"row", "what", "reason"}`, and `source` where there are several.
    """

    rows: int = 0
    dropped: int = 0
    truncated: int = 0
    skipped: int = 0
    dropped_rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count a row."""
        self.rows += 1
        self.truncated += outcome.truncated
        self.dropped += outcome.lost == "dropped"
        self.skipped += outcome.lost == "skipped"

    def merge(self, other: Counts) -> None:
        """Count the rows of another."""
        for name in ("rows", "truncated", "dropped", "skipped", "dropped_rows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def lose(self, outcome: Outcome, loaded: LoadedSource, place: tuple[int, int]) -> None:
        """List a row as lost, which is the n-th of a part of its source."""
        (source, row), parts = place, loaded.source.parts
        origin = {"source": parts[source]} if parts else {}
        self.dropped_rows.append({**origin, "row": row, "what": outcome.lost, "reason": outcome.reason})


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        document: None when the row is lost.
        lost: `dropped` or `skipped`.
        reason: why.
        length: tokens before anything was cut off.
    """

    document: Document | None
    truncated: bool = False
    lost: str | None = None
    reason: str = ""
    length: int = 0


def documents(
    split: Split,
    tokenizer: Any,
    recipe: Recipe,
    counts: Counts,
    *,
    without: Callable[[Document], str | None] = lambda document: None,
    num_proc: int | None = None,
    progress: bool = True,
) -> Iterator[Document]:
    """The documents of a split, in the order of its rows; `counts` is right once the last has come.

    With `num_proc` processes each loads the source for itself. A bar is shown when it takes more than a few seconds.

    Args:
        split: the rows.
        tokenizer: a fast tokenizer.
        recipe: what is made of them.
        counts: kept up to date.
        without: a reason to leave a document out, or None.
        num_proc: how many processes.
        progress: show the bar.

    Raises:
        UserError: the template is broken, or the first row that cannot be used, by its index in the source.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    indices, name = split.indices(), split.loaded.argument
    bar = tqdm(
        total=len(indices), desc=f"tokenizing data.{name}", unit="row", delay=3, disable=not progress, leave=False
    )
    row_tokenizer = RowTokenizer(split.loaded, tokenizer, recipe)
    row_tokenizer.check()
    with bar:
        if num_proc is None or num_proc <= 1:
            outcomes: Iterator[Outcome] = (row_tokenizer.one(index) for index in indices)
        else:
            outcomes = _in_processes(row_tokenizer, indices, num_proc)
        for index, outcome in zip(indices, outcomes, strict=True):
            bar.update()
            if outcome.document is not None and (reason := without(outcome.document)) is not None:
                outcome = Outcome(None, lost="dropped", reason=reason)
            counts.add(outcome)
            if outcome.document is None:
                counts.lose(outcome, split.loaded, split.loaded.locate(index))
            else:
                yield outcome.document


@dataclass
class RowTokenizer:
    """What turns one row after the other into a document."""

    loaded: LoadedSource
    tokenizer: Any
    recipe: Recipe

    def check(self) -> None:
        """Refuse a template that is broken for every row.

        Raises:
            UserError: it is not valid Jinja.
        """
        if self.recipe.chat_template is not None:
            try:
                check_template(self.tokenizer, self.recipe.chat_template)
            except UserError as error:
                raise error.within("data") from error

    def one(self, index: int) -> Outcome:
        """What becomes of row `index`."""
        return self.of(self.loaded.item(index), index)

    def of(self, item: Item, row: int) -> Outcome:
        """What becomes of a row, which its document calls `row`.

        Raises:
            UserError: the row cannot be used, and bad rows are not to be skipped.
        """
        try:
            return self._of(item, row)
        except UserError as error:
            if self.recipe.on_bad_row == "skip":
                return Outcome(None, lost="skipped", reason=str(error))
            raise

    def _of(self, item: Item, row: int) -> Outcome:
        recipe = self.recipe
        example = self.loaded.example(item)
        try:
            ids, labels = self._tokens(example)
        except UserError as error:
            raise error.within("data", self.loaded.where(item)) from error
        limit, length = recipe.max_length, len(ids)
        if limit is None or length <= limit or recipe.prompts:
            return Outcome(Document(row, ids, labels, example.weight, item.source), length=length)
        if recipe.overflow == "error":
            raise UserError(
                "data.max_length",
                f"expected at most {limit} tokens, got {length}{self.loaded.where(item)}; "
                "`data.overflow: truncate` or `drop` goes on without",
            )
        reason = f"data.max_length: {length} tokens, at most {limit} are kept"
        if recipe.overflow == "drop":
            return Outcome(None, lost="dropped", reason=reason, length=length)
        # The first label is never predicted, so it does not count as something left to learn.
        if all(label == IGNORED for label in labels[1:limit]):
            reason += ", and there is nothing to learn in them"
            return Outcome(None, lost="dropped", reason=reason, length=length)
        document = Document(row, ids[:limit], labels[:limit], example.weight, item.source)
        return Outcome(document, truncated=True, length=length)

    def _tokens(self, example: Example) -> tuple[list[int], list[int]]:
        recipe = self.recipe
        if isinstance(example, Conversation):
            shape: dict[str, Any] = {
                "tools": example.tools,
                "chat_template": recipe.chat_template,
                "plain_text": recipe.plain_text,
                "turns": recipe.turns,
                "reasoning": recipe.reasoning,
            }
            if recipe.prompts:
                ids = tokenize_prompt(self.tokenizer, example.messages, **shape)
                return ids, [IGNORED] * len(ids)
            tokens = tokenize_conversation(
                self.tokenizer, example.messages, require_end_of_turn=recipe.require_end_of_turn, **shape
            )
            return tokens["input_ids"], tokens["labels"]
        if recipe.prompts:
            raise UserError("predict", f"expected rows with turns to answer, got {type(example).__name__.lower()}")
        if isinstance(example, Text):
            tokens = tokenize_text(self.tokenizer, example.text)
            return tokens["input_ids"], tokens["labels"]
        return example.input_ids, example.labels


def _in_processes(row_tokenizer: RowTokenizer, indices: Sequence[int], num_proc: int) -> Iterator[Outcome]:
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    chunks = [list(indices[start : start + _CHUNK]) for start in range(0, len(indices), _CHUNK)]
    # Each process reads the source anew: that is cheaper than sending rows, which may be made on demand. And it is a
    # fresh process, since a tokenizer's threads do not survive a fork.
    unread = LoadedSource(row_tokenizer.loaded.source, row_tokenizer.loaded.argument, skips=row_tokenizer.loaded.skips)
    # As bytes: a process that unpickles a tokenizer imports transformers first, and the next is not started before this
    # one has read all that is sent to it.
    arguments = (pickle.dumps(RowTokenizer(unread, row_tokenizer.tokenizer, row_tokenizer.recipe)),)
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(num_proc, spawn, initializer=_begin, initargs=arguments) as executor:
            for outcomes in executor.map(_chunk, chunks):
                yield from outcomes
    except BrokenProcessPool as error:
        raise UserError(
            "data.num_proc",
            "a process that tokenizes could not start, or has ended before its time: it may have been "
            "out of memory, or could not import what the source or its row function needs (its own message is above); "
            "without num_proc all is done in this process",
        ) from error


_worker: RowTokenizer


def _begin(row_tokenizer: bytes) -> None:
    global _worker
    exit_with_parent()
    _worker = pickle.loads(row_tokenizer)


def _chunk(indices: list[int]) -> list[Outcome]:
    return [_worker.one(index) for index in indices]
