"""Rows from local files, with errors that name the file and the line.

JSON and CSV are parsed here and not by Arrow. Arrow guesses types, so a text that looks like a date or a number would
not stay text, and its errors have no line numbers.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import glob
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError, near_matches


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


RowSequence = Sequence[Mapping[str, Any] | BrokenRow]

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")


def local_paths(path: str | list[str]) -> list[Path] | None:
    """Return the local files (or one saved folder) at `path`, in order; None if it names a hub data set.

    Raises:
        UserError: it is a path, a glob or a list, but no such file exists.
    """
    if isinstance(path, list):
        if not path:
            raise UserError("path", "expected at least one file, got an empty list")
        found = [local_paths(item) for item in path]
        if any(paths is None for paths in found):
            raise UserError("path", f"expected local files only in a list, got {path}")
        return [file for paths in found if paths is not None for file in paths]
    if not path:
        raise UserError("path", "expected a file, a folder or the name of a data set, got an empty string")
    expanded = Path(path).expanduser()
    if expanded.exists():
        return [expanded]
    if glob.has_magic(path):
        matches = sorted(Path(match) for match in glob.glob(str(expanded), recursive=True))
        if not matches:
            raise UserError("path", f"no file matches {path!r}")
        return matches
    if path.lstrip().startswith("{"):
        raise UserError(
            "path", f"expected a file, or a mapping with class_path and init_args of that class, got {path[:80]!r}"
        )
    if "://" in path:
        raise UserError("path", f"expected a local file or the name of a data set on the hub, got the address {path!r}")
    looks_local = expanded.suffix.lower() in SUFFIXES or path.startswith((".", "~", "/")) or path.count("/") > 1
    if not looks_local:
        return None
    folder = expanded.parent
    if not folder.is_dir():
        raise UserError("path", f"no such file: {path!r} (there is no folder {str(folder)!r} either)")
    names = [entry.name for entry in folder.iterdir()]
    raise UserError("path", f"no such file: {path!r}.{near_matches(expanded.name, names)}")


def read_files(paths: list[Path], split: str | None) -> RowSequence:
    """Read the rows of all files in order. `split` selects a split of a saved folder.

    A line that cannot be read becomes a `BrokenRow`, as long as the lines after it can be read.

    Raises:
        UserError: a file cannot be read at all.
    """
    parts = []
    for path in paths:
        with file_errors(path):
            parts.append(_read(path, split))
    if len(parts) == 1:
        return parts[0]
    return [row for part in parts for row in part]


def refuse_broken(rows: RowSequence) -> Sequence[Mapping[str, Any]]:
    """Return `rows` if no row is broken.

    Raises:
        UserError: the error of the first `BrokenRow`.
    """
    if isinstance(rows, list):  # only files parsed here can have broken rows
        for row in rows:
            if isinstance(row, BrokenRow):
                raise row.error
    intact: Any = rows
    checked: Sequence[Mapping[str, Any]] = intact
    return checked


def hash_files(paths: list[Path]) -> str:
    """Digest every byte of the files and folders, in order."""
    digest = hashlib.sha256()
    for _, file in _files_in(paths):
        with file_errors(file), file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def file_sizes(paths: list[Path]) -> list[list[Any]]:
    """Return name and size in bytes of each file, and of each file in a folder, in order."""
    return [[str(file.relative_to(path.parent)), file.stat().st_size] for path, file in _files_in(paths)]


def _files_in(paths: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Each path with itself, or with each file in that folder."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                yield path, file


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Raise an OSError of this block as a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError("path", f"cannot read {str(path)!r}: {error.strerror or error}") from error


@contextlib.contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Raise an error of pyarrow in this block as a `UserError` that names the file."""
    import pyarrow  # type: ignore[import-untyped]

    try:
        yield
    except pyarrow.ArrowException as error:
        raise UserError("path", f"{str(path)!r}: not a readable parquet file: {error}") from error


def _read(path: Path, split: str | None) -> RowSequence:
    if path.is_dir():
        return _read_saved(path, split)
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        return _read_json(path)
    if suffix == ".csv":
        return list(csv_rows(path))
    if suffix == ".parquet":
        return _read_parquet(path)
    raise UserError("path", f"expected a file that ends in {', '.join(SUFFIXES)}, got {str(path)!r}")


def _read_json(path: Path) -> RowSequence:
    """Read a JSON list of objects, an object of objects, or one object per line."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if data.lstrip()[:1] == b"[":
        return [
            row if isinstance(row, dict) else _broken(f"{str(path)!r} row {index}: {_not_an_object(row)}")
            for index, row in enumerate(_parse_file(data, repr(str(path))))
        ]
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
    if path.suffix.lower() == ".json" and lines and isinstance(_parse_line(lines[0][1], ""), BrokenRow):
        whole = _parse_file(data, repr(str(path)))
        keyed = whole and isinstance(whole, dict) and all(isinstance(row, dict) for row in whole.values())
        return [{"key": key, **row} for key, row in whole.items()] if keyed else [whole]
    return [json_row(path, number, line) for number, line in lines]


def json_row(path: Path, number: int, line: bytes) -> Mapping[str, Any] | BrokenRow:
    """Parse line `number` of a file of JSON lines."""
    where = f"{str(path)!r} line {number}"
    row: Any = _parse_line(line, where)
    return row if isinstance(row, dict | BrokenRow) else _broken(f"{where}: {_not_an_object(row)}")


def _broken(problem: str) -> BrokenRow:
    return BrokenRow(UserError("path", problem))


def _parse_line(data: bytes, where: str) -> Any:
    """Parse JSON; return a `BrokenRow` where it is invalid."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        return _broken(f"{where}: not valid JSON: {error.msg}")
    except UnicodeDecodeError as error:
        return _broken(f"{where}: not UTF-8: {error}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested brackets
        return _broken(f"{where}: not readable JSON: {error}")


def _parse_file(data: bytes, where: str) -> Any:
    """Parse a whole file as one JSON value."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise UserError("path", f"{where} line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError):
        broken = _parse_line(data, where)
        raise broken.error from None


def _not_an_object(row: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return f"expected an object, got {kinds.get(type(row), 'a number')}"


def csv_rows(path: Path) -> Iterator[Mapping[str, Any] | BrokenRow]:
    """Yield the rows of a CSV file. Every value stays a string: an answer of `5` is not the number 5.

    Raises:
        UserError: a line and everything after it cannot be parsed.
    """
    # Process-wide. It is not restored, because another file may be half read.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        # Bytes that are not UTF-8 decode to lone surrogates, so that one of them does not fail the whole file.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            if twice := [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]:
                raise UserError("path", f"{str(path)!r} line 1: expected each column once, got {twice[0]!r} twice")
            for row in reader:
                where = f"{str(path)!r} line {reader.line_num}"
                text = "".join(value for value in row.values() if isinstance(value, str))
                if None in row:
                    yield _broken(f"{where}: expected {len(row) - 1} values, got more")
                elif None in row.values():
                    given = sum(value is not None for value in row.values())
                    yield _broken(f"{where}: expected {len(row)} values, got {given}; is a quote left open?")
                elif any("\udc80" <= character <= "\udcff" for character in text):
                    yield _broken(f"{where}: not UTF-8")
                else:
                    yield row
    except csv.Error as error:
        raise UserError("path", f"{str(path)!r} line {reader.line_num}: not valid CSV: {error}") from error


def _read_parquet(path: Path) -> RowSequence:
    from datasets import Dataset
    from pyarrow import parquet

    with parquet_errors(path):
        rows: RowSequence = Dataset(parquet.read_table(path, memory_map=True))
    return rows


def _read_saved(path: Path, split: str | None) -> RowSequence:
    """Read a folder written by `datasets`' save_to_disk, with one split or several."""
    if not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        raise UserError(
            "path",
            f"the folder {str(path)!r} was not written by datasets' save_to_disk; name its files instead, such as "
            f"{str(path / '*.jsonl')!r}",
        )
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(path))
    if isinstance(loaded, DatasetDict):
        name = split or "train"
        if name not in loaded:
            raise UserError(
                "split", f"no split {name!r} among {', '.join(loaded)} of {str(path)!r}.{near_matches(name, loaded)}"
            )
        loaded = loaded[name]
    rows: RowSequence = loaded
    return rows
