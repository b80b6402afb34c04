"""Rows of Arrow tables. A value is made when it is read, so a column that nothing reads is never decoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from typing_extensions import override

from lit_probsft.data.rows.labels import Label
from lit_probsft.data.rows.readers import part_of
from lit_probsft.errors import UserError, first_line

Decoder = Callable[[Any], Any]
"""Makes the value of a row from the value that Arrow stores."""


class ArrowRows(Sequence[Mapping[str, Any]]):
    """The rows of a table.

    Arrow's maps become dicts, class labels become `Label`s (None for -1), and JSON is parsed. Images, audio and video
    stay as they are stored, `{"bytes": ..., "path": ...}`.

    Args:
        table: an Arrow table with the columns that will be read.
        columns: names of all columns, if the table lacks some.
        read_column: reads a column that the table lacks.
        decoders: of columns whose stored values are not the ones to return, see `decoders_of`.
        fingerprint: identifies the content, if it is known.
    """

    def __init__(
        self,
        table: Any,
        *,
        columns: Sequence[str] | None = None,
        read_column: Callable[[str], Any] | None = None,
        decoders: Mapping[str, Decoder] | None = None,
        fingerprint: str = "",
    ) -> None:
        self.columns: list[str] = list(table.column_names if columns is None else columns)
        self._read_column, self._decoders = read_column, dict(decoders or {})
        self._indices = range(table.num_rows)
        self.fingerprint = fingerprint
        self._columns = {name: _Column(table.column(name)) for name in table.column_names}

    @override
    def __len__(self) -> int:
        return len(self._indices)

    @override
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            rows = object.__new__(type(self))
            rows.__dict__ = {**self.__dict__, "_indices": self._indices[index]}
            return rows
        return _ArrowRow(self, self._indices[index])

    def value(self, column: str, index: int) -> Any:
        """Return the value of a column in a row of the table.

        Raises:
            UserError: the stored value is damaged.
        """
        values = self._columns.get(column)
        if values is None:
            if self._read_column is None or column not in self.columns:
                raise KeyError(column)
            values = self._columns[column] = _Column(self._read_column(column))
        try:
            value = values[index]
            decoder = self._decoders.get(column)
            return value if decoder is None or value is None else decoder(value)
        except (ValueError, KeyError, OverflowError, RecursionError) as error:  # not UTF-8, a key twice in a map ...
            raise UserError("path", f"column {column!r}: not a readable value: {first_line(error)}") from error


class _Column:
    """The values of a column. They are validated before use, as damaged offsets would end the process."""

    def __init__(self, array: Any) -> None:
        self._chunks = array.chunks
        self._ends = list(accumulate(len(chunk) for chunk in self._chunks))
        self._valid: set[int] = set()
        # Only where there are maps: Arrow is many times slower with this option.
        self._maps = "strict" if "map<" in str(array.type) else None

    def __getitem__(self, index: int) -> Any:
        number, index = part_of(self._ends, index)
        chunk = self._chunks[number]
        if number not in self._valid:
            chunk.validate(full=True)
            self._valid.add(number)
        return chunk[index].as_py(maps_as_pydicts=self._maps)


class _ArrowRow(Mapping[str, Any]):
    """A row whose values are made when they are read."""

    __slots__ = ("_index", "_rows", "_values")

    def __init__(self, rows: ArrowRows, index: int) -> None:
        self._rows, self._index = rows, index
        self._values: dict[str, Any] = {}

    @override
    def __getitem__(self, column: str) -> Any:
        if column not in self._values:
            self._values[column] = self._rows.value(column, self._index)
        return self._values[column]

    @override
    def __contains__(self, column: object) -> bool:
        return column in self._rows.columns

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._rows.columns)

    @override
    def __len__(self) -> int:
        return len(self._rows.columns)

    @override
    def __repr__(self) -> str:
        return repr(dict(self))


def decoders_of(features: Mapping[str, Any] | None) -> dict[str, Decoder]:
    """Return a decoder for each column of `datasets`' features that needs one."""
    found = {name: _decoder(feature) for name, feature in (features or {}).items()}
    return {name: decoder for name, decoder in found.items() if decoder is not None}


def _decoder(feature: Any) -> Decoder | None:
    """The decoder of one feature; None if its values are returned as they are stored."""
    from datasets import ClassLabel
    from datasets.features import LargeList, List, features

    if isinstance(feature, Mapping):
        fields = decoders_of(feature)
        return (lambda value: decode_fields(value, fields)) if fields else None
    if isinstance(feature, list | List | LargeList):
        element = _decoder(feature[0] if isinstance(feature, list) else feature.feature)
        return None if element is None else lambda value: [None if one is None else element(one) for one in value]
    if isinstance(feature, ClassLabel):
        names = list(feature.names or ())
        return lambda number: _label(number, names)
    if isinstance(feature, getattr(features, "Json", ())):
        return lambda text: json.loads(text) if isinstance(text, str) else text
    return None


def decode_fields(value: Any, decoders: Mapping[str, Decoder]) -> Any:
    """Return a mapping with some of its values decoded; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    decoded = {key: decoders[key](value[key]) for key in decoders if value.get(key) is not None}
    return {**value, **decoded}


def _label(number: Any, names: Sequence[str]) -> Any:
    """A number with the name of its class; None for -1, which means that there is no label."""
    if not isinstance(number, int) or number >= len(names):
        return number
    return Label(number, names[number]) if number >= 0 else None
