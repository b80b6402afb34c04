"""From the rows of a source to tokenized documents, in one process or several, with every loss counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lit_probsft.data.splits import LoadedSource, Split, located
from lit_probsft.data.store import Document
from lit_probsft.data.tokenization import IGNORED, tokenize_conversation, tokenize_prompt
from lit_probsft.errors import UserError

VERSION = 1
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


@dataclass
class Counts:
    """How many rows there were, and what became of those that are not whole documents now."""

    rows: int = 0
    dropped: int = 0
    truncated: int = 0


def documents(
    split: Split,
    tokenizer: Any,
    recipe: Recipe,
    counts: Counts,
    *,
    num_proc: int | None = None,
    progress: bool = True,
) -> Iterator[Document]:
    """The documents of a split, in the order of its rows; `counts` is right once the last has come.

    With `num_proc` processes each loads the source for itself. A bar is shown when it takes more than a few seconds.

    Raises:
        UserError: the first row that cannot be used, by its index in the source.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    indices, name = split.indices(), split.loaded.argument
    bar = tqdm(
        total=len(indices), desc=f"tokenizing data.{name}", unit="row", delay=3, disable=not progress, leave=False
    )
    with bar:
        if num_proc is None or num_proc <= 1:
            work = _Work(split.loaded, tokenizer, recipe)
            outcomes: Iterator[_Outcome] = (work.one(index) for index in indices)
        else:
            outcomes = _in_processes(_Work(split.loaded, tokenizer, recipe), indices, num_proc)
        for outcome in outcomes:
            bar.update()
            counts.rows += 1
            counts.truncated += outcome.truncated
            if outcome.document is None:
                counts.dropped += 1
            else:
                yield outcome.document


@dataclass(frozen=True)
class _Outcome:
    document: Document | None
    truncated: bool = False


@dataclass
class _Work:
    loaded: LoadedSource
    tokenizer: Any
    recipe: Recipe

    def one(self, index: int) -> _Outcome:
        recipe = self.recipe
        messages = self.loaded.conversation(index)
        try:
            shape: dict[str, Any] = {"chat_template": recipe.chat_template, "plain_text": recipe.plain_text}
            if recipe.prompts:
                ids = tokenize_prompt(self.tokenizer, messages, **shape)
                return _Outcome((index, ids, [IGNORED] * len(ids)))
            tokens = tokenize_conversation(
                self.tokenizer, messages, require_end_of_turn=recipe.require_end_of_turn, **shape
            )
        except UserError as error:
            raise located(error, "data", self.loaded.where(index)) from error
        ids, labels, limit = tokens["input_ids"], tokens["labels"], recipe.max_length
        if limit is None or len(ids) <= limit:
            return _Outcome((index, ids, labels))
        if recipe.overflow == "error":
            raise UserError(
                f"data.max_length: expected at most {limit} tokens, got {len(ids)}{self.loaded.where(index)}; "
                "`data.overflow: truncate` or `drop` goes on without"
            )
        # The first label is never predicted, so it does not count as something left to learn.
        if recipe.overflow == "drop" or all(label == IGNORED for label in labels[1:limit]):
            return _Outcome(None)
        return _Outcome((index, ids[:limit], labels[:limit]), truncated=True)


def _in_processes(work: _Work, indices: Sequence[int], num_proc: int) -> Iterator[_Outcome]:
    import multiprocessing

    chunks = [list(indices[start : start + _CHUNK]) for start in range(0, len(indices), _CHUNK)]
    # Each process reads the source anew: that is cheaper than sending rows, which may be made on demand. And it is a
    # fresh process, since a tokenizer's threads do not survive a fork.
    unread = LoadedSource(work.loaded.source, work.loaded.argument)
    arguments = (_Work(unread, work.tokenizer, work.recipe),)
    with multiprocessing.get_context("spawn").Pool(num_proc, _begin, arguments) as pool:
        for outcomes in pool.imap(_chunk, chunks):
            yield from outcomes


_worker: _Work


def _begin(work: _Work) -> None:
    global _worker
    _worker = work


def _chunk(indices: list[int]) -> list[_Outcome]:
    return [_worker.one(index) for index in indices]
