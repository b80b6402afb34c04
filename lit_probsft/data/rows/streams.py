"""Rows one after the other, from a place on: of files too large to be read as a whole, of the hub, of several sources.

A reader goes through a source once. Its place is plain data: a new reader that starts there goes on with the next row,
in constant time where the format allows it (a CSV file has to be gone through again).
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lit_probsft.data.rows.files import BrokenRow, RowSequence, csv_rows, json_row, read_files, unreadable
from lit_probsft.errors import UserError, errors_within, first_line

Row = Mapping[str, Any] | BrokenRow

Thunk = Callable[[], Row]
"""Makes a row; whoever passes over it need not pay for it."""


class Reader(ABC):
    """A source, row by row."""

    @abstractmethod
    def next(self) -> Thunk | None:
        """The next row; None behind the last.

        Raises:
            UserError: the source cannot be read any further.
        """

    @property
    @abstractmethod
    def place(self) -> Any:
        """Where the next row lies: numbers, texts, lists and dicts."""


class Indexed(Reader):
    """Rows that can be had by their number."""

    def __init__(self, rows: RowSequence, place: int | None) -> None:
        self._rows, self._next = rows, place or 0

    def next(self) -> Thunk | None:
        """The next row."""
        if self._next >= len(self._rows):
            return None
        self._next += 1
        return partial(self._rows.__getitem__, self._next - 1)

    @property
    def place(self) -> int:
        """Where the next row lies."""
        return self._next


class JsonLines(Reader):
    """A file of JSON lines; its place is the byte where the next line begins, and that line's number."""

    def __init__(self, path: Path, place: Sequence[int] | None) -> None:
        self._path = path
        self._byte, self._line = place or (0, 1)
        self._file = path.open("rb")
        self._file.seek(self._byte)

    def next(self) -> Thunk | None:
        """The next row."""
        for line in self._file:
            number = self._line
            self._byte, self._line = self._byte + len(line), number + 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                return partial(json_row, self._path, number, line)
        self._file.close()
        return None

    @property
    def place(self) -> list[int]:
        """Where the next row lies."""
        return [self._byte, self._line]


class Counted(Reader):
    """Rows that can only be gone through; its place is how many have been."""

    def __init__(self, rows: Iterator[Row], place: int | None) -> None:
        self._rows, self._count = rows, 0
        while self._count < (place or 0):
            self.next()

    def next(self) -> Thunk | None:
        """The next row."""
        row = next(self._rows, None)
        if row is None:
            return None
        self._count += 1
        return lambda: row

    @property
    def place(self) -> int:
        """Where the next row lies."""
        return self._count


class Parquet(Reader):
    """A parquet file, one row group in memory at a time; its place is how many rows have been."""

    def __init__(self, path: Path, place: int | None) -> None:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet

        self._path, self._error = path, pyarrow.ArrowException
        with self._told():
            self._file = parquet.ParquetFile(path, memory_map=True)
        # The rows of the next group begin at `_start`, those in memory end there.
        self._group, self._start = 0, 0
        self._rows: list[Any] = []
        self._next = place or 0

    def next(self) -> Thunk | None:
        """The next row."""
        while self._next >= self._start:
            if self._group >= self._file.num_row_groups:
                return None
            self._start += self._file.metadata.row_group(self._group).num_rows
            if self._next < self._start:
                with self._told():
                    self._rows = self._file.read_row_group(self._group).to_pylist()
            self._group += 1
        self._next += 1
        return partial(self._rows.__getitem__, self._next - 1 - self._start)

    @property
    def place(self) -> int:
        """Where the next row lies."""
        return self._next

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise UserError("path", f"{str(self._path)!r}: not a readable parquet file: {error}") from error


class Files(Reader):
    """Files one after the other; its place is which one, and the place in it."""

    def __init__(self, paths: Sequence[Path], split: str | None, place: Sequence[Any] | None) -> None:
        self._paths, self._split = paths, split
        self._file: int = 0 if place is None else place[0]
        self._reader = self._open(None if place is None else place[1])

    def next(self) -> Thunk | None:
        """The next row."""
        while (row := self._next()) is None:
            if self._file + 1 >= len(self._paths):
                return None
            self._file += 1
            self._reader = self._open(None)
        return row

    def _next(self) -> Thunk | None:
        try:
            return self._reader.next()
        except OSError as error:
            raise unreadable(self._paths[self._file], error) from error

    @property
    def place(self) -> list[Any]:
        """Where the next row lies."""
        return [self._file, self._reader.place]

    def _open(self, place: Any) -> Reader:
        path = self._paths[self._file]
        kind = path.suffix.lower() if path.is_file() else ""
        try:
            if kind == ".jsonl" and not _is_list(path):
                return JsonLines(path, place)
            if kind == ".csv":
                return Counted(csv_rows(path), place)
            if kind == ".parquet":
                return Parquet(path, place)
        except OSError as error:
            raise unreadable(path, error) from error
        return Indexed(read_files([path], self._split), place)


class Hub(Reader):
    """A streamed data set of the `datasets` library."""

    def __init__(self, dataset: Any, place: dict[str, Any] | None) -> None:
        self._dataset, self._place = dataset, place
        if place is not None:
            dataset.load_state_dict(place)
        self._rows = iter(dataset)
        self._begun = False

    def next(self) -> Thunk | None:
        """The next row."""
        self._begun = True
        try:
            row = next(self._rows, None)
        except Exception as error:  # the hub's errors share no base class
            raise UserError(
                "path", f"the hub gave no more rows: {type(error).__name__}: {first_line(error)}"
            ) from error
        return None if row is None else lambda: row

    @property
    def place(self) -> dict[str, Any] | None:
        """Where the next row lies."""
        return self._dataset.state_dict() if self._begun else self._place


class Next(NamedTuple):
    """The next row of a stream.

    Attributes:
        row: makes it.
        source: which part of the source it is of, counted from 0.
        number: its place among that part's rows.
        passes: how often that part has been gone through before.
    """

    row: Thunk
    source: int
    number: int
    passes: int


class RowStream:
    """A source over and over again: behind its last row comes its first.

    Args:
        open_at: makes a reader of the source that starts at a place, or at the beginning for None.
        place: where to go on; what another stream's `place` was.
        limit: rows of a pass, at most.

    Attributes:
        passes: how often the source has been gone through.
    """

    def __init__(self, open_at: Callable[[Any], Reader], place: Any = None, limit: int | None = None) -> None:
        self._open_at, self._limit = open_at, limit
        begun: dict[str, Any] = {"passes": 0, "row": 0, "at": None} if place is None else place
        self.passes: int = begun["passes"]
        self._row: int = begun["row"]
        self._reader = open_at(begun["at"])

    def next(self) -> Next:
        """The next row.

        Raises:
            UserError: the source is empty, or cannot be read any further.
        """
        while True:
            row = None if self._row == self._limit else self._reader.next()
            if row is not None:
                self._row += 1
                return Next(row, 0, self._row - 1, self.passes)
            if not self._row:
                raise UserError("path", "expected at least one row, got an empty data set")
            self.passes, self._row, self._reader = self.passes + 1, 0, self._open_at(None)

    @property
    def place(self) -> dict[str, Any]:
        """Where the next row lies."""
        return {"passes": self.passes, "row": self._row, "at": self._reader.place}


class MixedStream:
    """Rows of several streams in shares that hold from the first row on.

    Args:
        streams: of each part, by name, given its place.
        weights: of each part, above 0.
        place: where to go on.
    """

    def __init__(
        self,
        streams: Mapping[str, Callable[[Any], RowStream | MixedStream]],
        weights: Mapping[str, float],
        place: Mapping[str, Any] | None,
    ) -> None:
        places = {} if place is None else place["parts"]
        self._counts = dict.fromkeys(streams, 0) if place is None else dict(place["counts"])
        self._streams: dict[str, RowStream | MixedStream] = {}
        total = sum(weights.values())
        self._shares = {name: weights[name] / total for name in streams}
        for name, make in streams.items():
            with errors_within(f"sources.{name}"):
                self._streams[name] = make(places.get(name))

    @property
    def passes(self) -> int:
        """How often the source that was gone through least has been."""
        return min(stream.passes for stream in self._streams.values())

    def next(self) -> Next:
        """The next row.

        Raises:
            UserError: as `RowStream.next`.
        """
        rows = sum(self._counts.values()) + 1
        # Whoever is furthest behind its share; the first of equals.
        name = max(self._shares, key=lambda part: self._shares[part] * rows - self._counts[part])
        self._counts[name] += 1
        with errors_within(f"sources.{name}"):
            row, _, number, passes = self._streams[name].next()
        return Next(lambda: of_part(name, row()), list(self._shares).index(name), number, passes)

    @property
    def place(self) -> dict[str, Any]:
        """Where each part goes on."""
        return {
            "counts": dict(self._counts),
            "parts": {name: stream.place for name, stream in self._streams.items()},
        }


def of_part(name: str, row: Row) -> Row:
    """A row of a mixture, with the name of its part."""
    return row.within(f"sources.{name}") if isinstance(row, BrokenRow) else {"source": name, "row": row}


def _is_list(path: Path) -> bool:
    """Is a file of JSON one list of all rows?"""
    with path.open("rb") as file:
        for line in file:
            if begun := line.removeprefix(b"\xef\xbb\xbf").lstrip():
                return begun.startswith(b"[")
    return False
