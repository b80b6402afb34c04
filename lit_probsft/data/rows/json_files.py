"""Rows of JSON files: one object per line, a list of objects, or an object that holds the rows.

JSON is parsed here and not by Arrow. Arrow guesses types, so a text that looks like a date would not stay text, and its
errors have no line numbers.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from lit_probsft.data.rows.compression import open_binary
from lit_probsft.data.rows.readers import BrokenRow, IndexedReader, LazyRow, Reader, Row, broken_row
from lit_probsft.errors import UserError


def read_json(path: Path) -> list[Row]:
    """Read a JSON list of objects, an object that holds the rows, or one object per line.

    Raises:
        UserError: the file is not JSON.
    """
    data = _content(path)
    lines = list(_lines(data))
    # One object per line: the first line is a whole object, and more follow.
    if data.lstrip()[:1] != b"[" and len(lines) > 1 and not isinstance(_parse_line(lines[0][1], ""), BrokenRow):
        return [_json_row(path, number, line) for number, line in lines]
    return _rows_within(path, _parse_file(data, path)) if lines else []


def read_json_lines(path: Path) -> list[Row]:
    """Read one object per line, or a JSON list of objects.

    Raises:
        UserError: a list is not JSON. A line that is not JSON is a `BrokenRow`.
    """
    data = _content(path)
    if data.lstrip()[:1] == b"[":
        return _rows_of_list(path, _parse_file(data, path))
    return [_json_row(path, number, line) for number, line in _lines(data)]


def stream_json_lines(path: Path, position: Any) -> Reader:
    """Return a reader of one object per line, or of a JSON list of objects."""
    if _is_list(path):
        return IndexedReader(read_json_lines(path), position)
    return _JsonLinesReader(path, position)


class _JsonLinesReader(Reader):
    """Reads a file of JSON lines. Its position is the byte at which the next line starts, and that line's number."""

    position: Sequence[int] = ()

    def __init__(self, path: Path, position: Sequence[int] | None) -> None:
        self.position = position or [0, 1]
        self._path, self._stack = path, ExitStack()
        self._file = self._stack.enter_context(open_binary(path, self.position[0]))

    @override
    def next(self) -> LazyRow | None:
        for line in self._file:
            start, number = self.position
            self.position = [start + len(line), number + 1]
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                return partial(_json_row, self._path, number, line)
        self._stack.close()
        return None


def _content(path: Path) -> bytes:
    with open_binary(path) as file:
        return file.read().removeprefix(codecs.BOM_UTF8)


def _is_list(path: Path) -> bool:
    """Whether a file is one list of all rows."""
    with open_binary(path) as file:
        for line in file:
            if text := line.removeprefix(codecs.BOM_UTF8).lstrip():
                return text.startswith(b"[")
    return False


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, without blank ones."""
    return ((number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip())


def _rows_within(path: Path, whole: Any) -> list[Row]:
    """The rows of a file that is one JSON value."""
    if isinstance(whole, Mapping):
        # `{"version": 1, "data": [...]}`, or one key of any name.
        for key, value in whole.items():
            if (key == "data" or len(whole) == 1) and _is_list_of_rows(value):
                return _rows_of_list(path, value)
        if whole and all(isinstance(row, Mapping) for row in whole.values()):
            return [{"key": key, **row} for key, row in whole.items()]
        if whole and all(_is_list_of_rows(rows) for rows in whole.values()):
            groups = {key: _rows_of_list(path, rows) for key, rows in whole.items()}
            return [
                {"key": key, **row} if isinstance(row, Mapping) else row for key, rows in groups.items() for row in rows
            ]
        return [whole]
    return _rows_of_list(path, whole) if isinstance(whole, list) else [broken_row(_not_an_object(whole, path))]


def _is_list_of_rows(value: Any) -> bool:
    """Whether this is a list of rows, and not the turns of a single one."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and "role" not in first and "from" not in first


def _rows_of_list(path: Path, rows: list[Any]) -> list[Row]:
    return [
        row if isinstance(row, Mapping) else broken_row(_not_an_object(row, path, f" row {index}"))
        for index, row in enumerate(rows)
    ]


def _json_row(path: Path, number: int, line: bytes) -> Row:
    """Parse line `number` of a file of JSON lines."""
    where = f" line {number}"
    row: Any = _parse_line(line, f"{str(path)!r}{where}")
    return row if isinstance(row, Mapping | BrokenRow) else broken_row(_not_an_object(row, path, where))


def _parse_line(data: bytes, where: str) -> Any:
    """Parse JSON; return a `BrokenRow` where it is invalid."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        return broken_row(f"{where}: not valid JSON: {error.msg}")
    except UnicodeDecodeError as error:
        return broken_row(f"{where}: not UTF-8: {error}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested brackets
        return broken_row(f"{where}: not readable JSON: {error}")


def _parse_file(data: bytes, path: Path) -> Any:
    """Parse a whole file as one JSON value."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise UserError("path", f"{str(path)!r} line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError):
        broken = _parse_line(data, repr(str(path)))
        raise broken.error from None


def _not_an_object(row: Any, path: Path, where: str = "") -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return f"{str(path)!r}{where}: expected an object, got {kinds.get(type(row), 'a number')}"
