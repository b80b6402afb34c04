"""Reads a source row by row, for files too large to load.

A reader goes through a source once. Its position is plain data; a new reader at that position continues with the next
row, in constant time where the format allows it (a CSV file is read again from the start).
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from lit_probsft.data.rows.files import (
    BrokenRow,
    RowSequence,
    csv_rows,
    file_errors,
    json_row,
    parquet_errors,
    read_files,
)

Row = Mapping[str, Any] | BrokenRow

LazyRow = Callable[[], Row]
"""Parses a row when it is called, so that skipping one costs nothing."""


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


class JsonLinesReader(Reader):
    """Reads a file of JSON lines. Its position is the byte at which the next line starts, and that line's number."""

    position: Sequence[int] = ()

    def __init__(self, path: Path, position: Sequence[int] | None) -> None:
        self._path, self._file = path, path.open("rb")
        self.position = position or [0, 1]
        self._file.seek(self.position[0])

    @override
    def next(self) -> LazyRow | None:
        for line in self._file:
            start, number = self.position
            self.position = [start + len(line), number + 1]
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                return partial(json_row, self._path, number, line)
        self._file.close()
        return None


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


class ParquetReader(Reader):
    """Reads a parquet file, one row group in memory at a time. Its position is the number of rows read."""

    position = 0

    def __init__(self, path: Path, position: int | None) -> None:
        from pyarrow import parquet  # type: ignore[import-untyped]

        self._path = path
        with parquet_errors(path):
            self._file = parquet.ParquetFile(path, memory_map=True)
        # The rows in memory end where the next group begins, at `_start`.
        self._group, self._start = 0, 0
        self._rows: list[Any] = []
        self.position = position or 0

    @override
    def next(self) -> LazyRow | None:
        while self.position >= self._start:
            if self._group >= self._file.num_row_groups:
                return None
            self._start += self._file.metadata.row_group(self._group).num_rows
            if self.position < self._start:
                with parquet_errors(self._path):
                    self._rows = self._file.read_row_group(self._group).to_pylist()
            self._group += 1
        self.position += 1
        return partial(self._rows.__getitem__, self.position - 1 - self._start)


class FilesReader(Reader):
    """Reads several files in order. Its position is the index of the file, and the position in it."""

    def __init__(self, paths: Sequence[Path], split: str | None, position: Sequence[Any] | None) -> None:
        self._paths, self._split = paths, split
        self._file: int = 0 if position is None else position[0]
        self._reader = self._open(None if position is None else position[1])

    @override
    def next(self) -> LazyRow | None:
        while (row := self._next()) is None:
            if self._file + 1 >= len(self._paths):
                return None
            self._file += 1
            self._reader = self._open(None)
        return row

    def _next(self) -> LazyRow | None:
        with file_errors(self._paths[self._file]):
            return self._reader.next()

    @property
    @override
    def position(self) -> list[Any]:
        return [self._file, self._reader.position]

    def _open(self, position: Any) -> Reader:
        path = self._paths[self._file]
        kind = path.suffix.lower() if path.is_file() else ""
        with file_errors(path):
            if kind == ".jsonl" and not _is_json_list(path):
                return JsonLinesReader(path, position)
            if kind == ".csv":
                return IteratorReader(csv_rows(path), position)
            if kind == ".parquet":
                return ParquetReader(path, position)
            return IndexedReader(read_files([path], self._split), position)


def _is_json_list(path: Path) -> bool:
    """Whether a JSON file is one list of all rows."""
    with path.open("rb") as file:
        for line in file:
            if text := line.removeprefix(codecs.BOM_UTF8).lstrip():
                return text.startswith(b"[")
    return False
