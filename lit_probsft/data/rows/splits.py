"""The rows of a split: a source, loaded once however many splits share it, and which of its rows belong here."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from lit_probsft.data.rows.files import BrokenRow, RowSequence
from lit_probsft.data.rows.formats import Conversation, Example, Text
from lit_probsft.data.rows.source import Source
from lit_probsft.errors import UserError, errors_within


class Item(NamedTuple):
    """A row.

    Attributes:
        row: what the source gave.
        source: which of the source's parts it is of, counted from 0.
        row_index: which of that part's rows it is.
    """

    row: Mapping[str, Any] | BrokenRow
    source: int
    row_index: int


class LoadedSource:
    """A source whose rows and fingerprint are read when first asked for.

    Args:
        source: the source.
        argument: which argument of the data module it came from; errors name it.
        skips: rows that cannot be read or used are passed over, so that the source may go on behind them.
    """

    def __init__(self, source: Source, argument: str, *, skips: bool = False) -> None:
        self.source, self.argument, self.skips = source, argument, skips

    @functools.cached_property
    def rows(self) -> RowSequence:
        """All rows, at least one.

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
        """Row `index`, and where it came from."""
        return Item(self.rows[index], *self.locate(index))

    def locate(self, index: int) -> tuple[int, int]:
        """Which part of the source row `index` is of, and which of that part's rows it is."""
        locate = getattr(self.rows, "locate", None)
        return (0, index) if locate is None else locate(index)

    def where(self, item: Item) -> str:
        """The end of an error about a row."""
        part = f".sources.{self.source.parts[item.source]}" if self.source.parts else ""
        return f" (row {item.row_index} of data.{self.argument}{part}, counted from 0)"

    def example(self, item: Item) -> Example:
        """What a row teaches.

        Raises:
            UserError: the row cannot be used; the message says which it is.
        """
        with errors_within(f"data.{self.argument}", self.where(item)):
            if isinstance(item.row, BrokenRow):
                raise item.row.error
            return self.source.example(item.row)


@dataclass(frozen=True)
class Split:
    """All rows of a source, or what a validation fraction leaves (`kept`) or takes (`held_out`).

    Attributes:
        loaded: the source.
        part: which of its rows.
        fraction: the share of rows held out; which ones depends on `seed` and their number alone.
    """

    loaded: LoadedSource
    part: Literal["all", "kept", "held_out"] = "all"
    fraction: float = 0.0
    seed: int = 0

    def indices(self) -> list[int]:
        """The rows of this split, ascending."""
        count = len(self.loaded.rows)
        if self.part == "all":
            return list(range(count))
        held_out = round(count * self.fraction)
        if not 0 < held_out < count:
            raise UserError(
                "data.validation_fraction",
                f"expected a share that leaves rows on both sides, got {self.fraction} of {count} rows",
            )
        order = np.random.default_rng([self.seed, count]).permutation(count)
        return sorted((order[:held_out] if self.part == "held_out" else order[held_out:]).tolist())

    def identity(self) -> list[Any]:
        """What determines the rows, for a cache's key; found without reading them where the source can."""
        return [self.loaded.fingerprint, *([] if self.part == "all" else [self.part, self.fraction, self.seed])]

    def texts(self) -> Iterator[str]:
        """Every text that a tokenizer can learn from: of turns, with the reasoning in them, and of texts without."""
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
