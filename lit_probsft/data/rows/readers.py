"""Reads a source row by row, for files too large to load.

A reader goes through a source once. Its position is plain data; a new reader at that position continues with the next
row, in constant time where the format allows it (a CSV or compressed file is read again from the start).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from typing_extensions import override

from lit_probsft.errors import UserError


@dataclass(frozen=True)
class BrokenRow:
    """Stands in for a row that cannot be read.

    Attributes:
        error: raised when the row is used; names the file and the line.
    """

    error: UserError

    def within(self, prefix: str) -> BrokenRow:
        """Return the row with its error within `prefix`, see `UserError.within`."""
        return BrokenRow(self.error.within(prefix))


def broken_row(problem: str) -> BrokenRow:
    """A row of a file that cannot be read."""
    return BrokenRow(UserError("path", problem))


Row = Mapping[str, Any] | BrokenRow

RowSequence = Sequence[Row]

LazyRow = Callable[[], Row]
"""Parses a row when it is called, so that skipping one costs nothing."""


def part_of(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Return the part that element `index` belongs to, and its index in that part.

    Args:
        ends: for each part, the number of elements up to its end.
        index: counted over all parts.
    """
    part = bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


class Reader(ABC):
    """Reads one row after the other."""

    @abstractmethod
    def next(self) -> LazyRow | None:
        """Return the next row, or None after the last.

        Raises:
            UserError: the source cannot be read any further.
        """

    @property
    @abstractmethod
    def position(self) -> Any:
        """Where the next row starts: numbers, texts, lists and dicts."""


class IndexedReader(Reader):
    """Reads a sequence of rows. Its position is an index."""

    position = 0

    def __init__(self, rows: RowSequence, position: int | None) -> None:
        self._rows, self.position = rows, position or 0

    @override
    def next(self) -> LazyRow | None:
        if self.position >= len(self._rows):
            return None
        self.position += 1
        return partial(self._rows.__getitem__, self.position - 1)


class IteratorReader(Reader):
    """Reads rows that come in order only. Its position is the number of rows read."""

    position = 0

    def __init__(self, rows: Iterator[Row], position: int | None) -> None:
        self._rows = rows
        while self.position < (position or 0):
            self.next()

    @override
    def next(self) -> LazyRow | None:
        row = next(self._rows, None)
        if row is None:
            return None
        self.position += 1
        return lambda: row
