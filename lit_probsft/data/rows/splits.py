"""The rows of a split: a source, loaded once even if several splits share it, and the indices of its rows."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from lit_probsft.data.rows.formats import Conversation, Example, Text
from lit_probsft.data.rows.readers import BrokenRow, RowSequence
from lit_probsft.data.rows.source import Source
from lit_probsft.errors import UserError, errors_within


class Item(NamedTuple):
    """A row and its origin.

    Attributes:
        row: as the source loaded it.
        source: index of the mixture's part it belongs to; 0 for a single source.
        row_index: its index within that part.
    """

    row: Mapping[str, Any] | BrokenRow
    source: int
    row_index: int


class LoadedSource:
    """A source whose rows and fingerprint are read on first use.

    Args:
        source: loads the rows.
        argument: the data module's argument that holds the source; errors name it.
        skips: whether unusable rows are skipped, so that loading continues after them.
    """

    def __init__(self, source: Source, argument: str, *, skips: bool = False) -> None:
        self.source, self.argument, self.skips = source, argument, skips

    @functools.cached_property
    def rows(self) -> RowSequence:
        """All rows; at least one.

        Raises:
            UserError: the source cannot be read, or is empty.
        """
        with errors_within(f"data.{self.argument}"):
            rows = self.source.load_with_broken() if self.skips else self.source.load()
        if not len(rows):
            raise UserError(f"data.{self.argument}", "expected at least one row, got an empty data set")
        return rows

    @functools.cached_property
    def fingerprint(self) -> str:
        """The source's fingerprint."""
        with errors_within(f"data.{self.argument}"):
            return self.source.fingerprint()

    def item(self, index: int) -> Item:
        """Return row `index` with its origin."""
        return Item(self.rows[index], *self.locate(index))

    def locate(self, index: int) -> tuple[int, int]:
        """Return the index of the part that row `index` belongs to, and the row's index in it."""
        locate = getattr(self.rows, "locate", None)
        return (0, index) if locate is None else locate(index)

    def where(self, item: Item) -> str:
        """The end of an error message about a row."""
        part = f".sources.{self.source.parts[item.source]}" if self.source.parts else ""
        return f" (row {item.row_index} of data.{self.argument}{part}, counted from 0)"

    def example(self, item: Item) -> Example:
        """Return the training example in a row.

        Raises:
            UserError: the row cannot be used. The message names the row.
        """
        with self.errors_of(item, f"data.{self.argument}"):
            if isinstance(item.row, BrokenRow):
                raise item.row.error
            return self.source.example(item.row)

    @contextlib.contextmanager
    def errors_of(self, item: Item, prefix: str) -> Iterator[None]:
        """Raise a `UserError` from this block within `prefix`, with the row's number.

        So is a RecursionError, since JSON may be nested more deeply than Python can follow.
        """
        try:
            with errors_within(prefix, self.where(item)):
                yield
        except RecursionError as error:
            problem = f"expected values that are nested less deeply{self.where(item)}"
            raise UserError(f"data.{self.argument}", problem) from error


@dataclass(frozen=True)
class Split:
    """All rows of a source, or what a validation fraction leaves (`kept`) or takes (`held_out`).

    Attributes:
        loaded: the source.
        part: which of its rows.
        fraction: share of rows held out. Which ones depends only on `seed` and the number of rows.
    """

    loaded: LoadedSource
    part: Literal["all", "kept", "held_out"] = "all"
    fraction: float = 0.0
    seed: int = 0

    def indices(self) -> list[int]:
        """Indices of the rows of this split, ascending."""
        count = len(self.loaded.rows)
        if self.part == "all":
            return list(range(count))
        held_out = round(count * self.fraction)
        if not 0 < held_out < count:
            raise UserError(
                "data.validation_fraction",
                f"expected a share that leaves rows for training and validation, got {self.fraction} of {count} rows",
            )
        order = np.random.default_rng([self.seed, count]).permutation(count)
        return sorted((order[:held_out] if self.part == "held_out" else order[held_out:]).tolist())

    def identity(self) -> list[Any]:
        """Plain data that identifies the rows, for the key of a cache."""
        return [self.loaded.fingerprint, *([] if self.part == "all" else [self.part, self.fraction, self.seed])]

    def texts(self) -> Iterator[str]:
        """Yield every text to train a tokenizer on: contents and reasoning of turns, and texts without turns."""
        for index in self.indices():
            try:
                example = self.loaded.example(self.loaded.item(index))
            except UserError:
                if not self.loaded.skips:
                    raise
                continue
            if isinstance(example, Text):
                yield example.text
            elif isinstance(example, Conversation):
                for message in example.messages:
                    yield from (message[key] for key in ("reasoning_content", "content") if message.get(key))
