"""Rows of parquet files. Only the used columns are read."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from typing_extensions import override

from lit_probsft.data.rows.arrow_rows import ArrowRows, Decoder, decoders_of
from lit_probsft.data.rows.readers import part_of
from lit_probsft.errors import UserError, first_line

UsedColumns = Callable[[Sequence[str]], Sequence[str]]
"""Returns the columns that will be used, out of all."""


def read_parquet(path: Path, used: UsedColumns) -> ArrowRows:
    """Read the used columns of a file.

    Raises:
        UserError: the file is damaged, or not a parquet file.
    """
    with _open(path) as file:
        return _rows(path, file, range(file.num_row_groups), used, _decoders(file))


class ParquetRowGroups(Sequence[Mapping[str, Any]]):
    """The rows of a file, one row group at a time in memory.

    Raises:
        UserError: the file is damaged, or not a parquet file; here, or when a row is read.
    """

    def __init__(self, path: Path, used: UsedColumns) -> None:
        self._path, self._used = path, used
        with _open(path) as file:
            self._decoders = _decoders(file)
            self._ends = list(accumulate(_group_rows(file)))
        self._group: int | None = None
        self._rows: ArrowRows

    @override
    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @override
    def __getitem__(self, index: Any) -> Any:
        group, index = part_of(self._ends, index)
        if group != self._group:
            with _open(self._path) as file:
                self._rows = _rows(self._path, file, [group], self._used, self._decoders)
            self._group = group
        return self._rows[index]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open a file. Errors of pyarrow name it; so does a column that is named twice."""
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    try:
        with parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            if twice := [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]:
                raise UserError("path", f"{str(path)!r}: expected each column once, got {twice[0]!r} twice")
            if (rows := sum(_group_rows(file))) != file.metadata.num_rows:
                raise _too_few(path, file.metadata.num_rows, rows)
            yield file
    except UserError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        raise UserError("path", f"{str(path)!r}: not a readable parquet file: {first_line(error)}") from error


def _group_rows(file: Any) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _rows(
    path: Path, file: Any, groups: Sequence[int], used: UsedColumns, decoders: Mapping[str, Decoder]
) -> ArrowRows:
    """The rows of some groups, with the used columns in memory."""
    names: list[str] = file.schema_arrow.names
    columns = list(used(names))

    def read_column(name: str) -> Any:
        with _open(path) as again:
            return _read(path, again, groups, [name]).column(name)

    table = _read(path, file, groups, columns)
    return ArrowRows(table, columns=names, read_column=read_column, decoders=decoders)


def _read(path: Path, file: Any, groups: Sequence[int], columns: Sequence[str]) -> Any:
    """A table of some columns, whose number of rows and texts are checked."""
    expected = sum(_group_rows(file)[group] for group in groups)
    table = file.read_row_groups(list(groups), columns=list(columns))
    if table.num_rows != expected:
        raise _too_few(path, expected, table.num_rows)
    table.validate(full=True)
    return table


def _too_few(path: Path, expected: int, found: int) -> UserError:
    return UserError("path", f"{str(path)!r}: damaged: expected {expected} rows as its footer says, found {found}")


def _decoders(file: Any) -> dict[str, Decoder]:
    """Decoders by the features that `datasets` writes into a file; none if it has none that can be read."""
    from datasets import Features

    try:
        info = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]
        return decoders_of(Features.from_dict(info["features"]))
    except Exception:  # written by anything, and needed for no plain value
        return {}
