"""Rows of files of separated values (.csv, .tsv).

They are parsed here and not by Arrow, which guesses types and has no line numbers in its errors.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lit_probsft.data.rows.compression import open_binary
from lit_probsft.data.rows.readers import Row, broken_row
from lit_probsft.errors import UserError


def csv_rows(path: Path, separator: str) -> Iterator[Row]:
    """Yield the rows of a file. Every value stays a string: an answer of `5` is not the number 5.

    Quotes are checked strictly. Otherwise a stray one would silently swallow the rows up to the next.

    Raises:
        UserError: the header cannot be read.
    """
    # Process-wide. It is not restored, because another file may be half read.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Bytes that are not UTF-8 decode to lone surrogates, so that one of them does not fail the whole file.
    with (
        open_binary(path) as binary,
        io.TextIOWrapper(binary, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream,
    ):
        reader = csv.DictReader(stream, delimiter=separator, strict=True)
        try:
            names = reader.fieldnames or ()
        except csv.Error as error:
            raise UserError("path", f"{str(path)!r} line 1: not valid CSV: {error}") from error
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError("path", f"{str(path)!r} line 1: expected each column once, got {twice[0]!r} twice")
        while True:
            first = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield broken_row(f"{str(path)!r} line {first}: not valid CSV: {error}; is a quote left open?")
                continue
            if row is None:
                return
            yield _checked(row, f"{str(path)!r} line {reader.line_num}")


def _checked(row: dict[str, str], where: str) -> Row:
    """The row if it is complete."""
    values = [value for value in row.values() if isinstance(value, str)]
    if None in row:
        return broken_row(f"{where}: expected {len(row) - 1} values, got more")
    if len(values) < len(row):
        return broken_row(f"{where}: expected {len(row)} values, got {len(values)}; is a quote left open?")
    if any("\udc80" <= character <= "\udcff" for value in values for character in value):
        return broken_row(f"{where}: not UTF-8")
    return row
