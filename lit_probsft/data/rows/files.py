"""Rows from local files, each format read in the way that says most precisely what is wrong with it.

JSON and CSV are parsed here and not by Arrow, which guesses types: a text that looks like a date or a number would stop
being a text, and an error would carry no line.
"""

from __future__ import annotations

import codecs
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
    """Takes the place of a row that cannot be read.

    Attributes:
        problem: why, with the file and the line.
        argument: which option of the source the file came from.
    """

    problem: str
    argument: str = "path"

    @property
    def error(self) -> UserError:
        """The error that using this row raises."""
        return UserError(self.argument, self.problem)

    @property
    def message(self) -> str:
        """The text of that error."""
        return str(self.error)

    def within(self, prefix: str) -> BrokenRow:
        """The same row seen from the option that holds its source."""
        return BrokenRow(self.problem, f"{prefix}.{self.argument}")


RowSequence = Sequence[Mapping[str, Any] | BrokenRow]

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")


def local_paths(path: str | list[str]) -> list[Path] | None:
    """The local files (or one saved folder) that `path` means, in order; None when it is the name of a hub data set.

    Raises:
        UserError: it is a path, a glob or a list, but nothing is there.
    """
    if isinstance(path, list):
        if not path:
            raise UserError("path", "expected at least one file, got an empty list")
        found = [local_paths(item) for item in path]
        if any(paths is None for paths in found):
            raise UserError("path", f"a list may hold local files only, got {path}")
        return [file for paths in found if paths is not None for file in paths]
    if not path:
        raise UserError("path", "expected a file, a folder or the name of a data set, got an empty text")
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
            "path", f"expected a file, or a mapping of a class and arguments that it takes, got {path[:80]!r}"
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
    """The rows of all files, one after the other; `split` matters for a saved folder of several splits only.

    A line that cannot be read leaves a `BrokenRow` in its place, as long as the ones behind it can be.

    Raises:
        UserError: a file cannot be read at all.
    """
    parts = []
    for path in paths:
        try:
            parts.append(_read(path, split))
        except OSError as error:
            raise unreadable(path, error) from error
    if len(parts) == 1:
        return parts[0]
    return [row for part in parts for row in part]


def refuse_broken(rows: RowSequence) -> Sequence[Mapping[str, Any]]:
    """Return `rows`, none of which is broken.

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
    """A digest of every byte in the files, folders included, and of their order."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                try:
                    with file.open("rb") as stream:
                        digest.update(hashlib.file_digest(stream, "sha256").digest())
                except OSError as error:
                    raise unreadable(file, error) from error
    return digest.hexdigest()


def file_sizes(paths: list[Path]) -> list[list[Any]]:
    """Name and bytes of each file, folders included, in their order."""
    found = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                found.append([str(file.relative_to(path.parent)), file.stat().st_size])
    return found


def unreadable(path: Path, error: OSError) -> UserError:
    """What a user is told of a file that the system does not let us read."""
    return UserError("path", f"expected a file that can be read, got {str(path)!r}: {error.strerror or error}")


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
    """A JSON list of objects, an object of objects, or one object per line."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if data.lstrip()[:1] == b"[":
        return [
            row if isinstance(row, dict) else BrokenRow(f"{str(path)!r} row {index}: {_no_object(row)}")
            for index, row in enumerate(_parse(data, repr(str(path))))
        ]
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
    if path.suffix.lower() == ".json" and lines and isinstance(_parsed(lines[0][1], ""), BrokenRow):
        whole = _parse(data, repr(str(path)))
        keyed = whole and isinstance(whole, dict) and all(isinstance(row, dict) for row in whole.values())
        return [{"key": key, **row} for key, row in whole.items()] if keyed else [whole]
    return [json_row(path, number, line) for number, line in lines]


def json_row(path: Path, number: int, line: bytes) -> Mapping[str, Any] | BrokenRow:
    """The row in line `number` of a file of JSON lines."""
    place = f"{str(path)!r} line {number}"
    row: Any = _parsed(line, place)
    return row if isinstance(row, dict | BrokenRow) else BrokenRow(f"{place}: {_no_object(row)}")


def _parsed(data: bytes, place: str) -> Any:
    """What JSON text means, or why it means nothing."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        return BrokenRow(f"{place}: not valid JSON: {error.msg}")
    except UnicodeDecodeError as error:
        return BrokenRow(f"{place}: not UTF-8: {error}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in thousands of brackets
        return BrokenRow(f"{place}: not readable JSON: {error}")


def _parse(data: bytes, place: str) -> Any:
    """What the text of a whole file means."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise UserError("path", f"{place} line {error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError):
        broken = _parsed(data, place)
        raise broken.error from None


def _no_object(row: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return f"expected an object, got {kinds.get(type(row), 'a number')}"


def csv_rows(path: Path) -> Iterator[Mapping[str, Any] | BrokenRow]:
    """The rows of a CSV file. Every value stays a text: an answer of `5` is not the number 5.

    Raises:
        UserError: it is not CSV from some line on.
    """
    # A setting of the whole process. It is not taken back: another file may be in the midst of being read.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        # Bytes that are not UTF-8 come as halves of surrogate pairs, so that one of them does not cost the whole file.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            if twice := [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]:
                raise UserError("path", f"{str(path)!r} line 1: expected every column once, got {twice[0]!r} again")
            for row in reader:
                place = f"{str(path)!r} line {reader.line_num}"
                text = "".join(value for value in row.values() if isinstance(value, str))
                if None in row:
                    yield BrokenRow(f"{place}: expected {len(row) - 1} values, got more")
                elif None in row.values():
                    there = sum(value is not None for value in row.values())
                    yield BrokenRow(f"{place}: expected {len(row)} values, got {there}; is a quote never closed?")
                elif any("\udc80" <= character <= "\udcff" for character in text):
                    yield BrokenRow(f"{place}: not UTF-8")
                else:
                    yield row
    except csv.Error as error:
        raise UserError("path", f"{str(path)!r} line {reader.line_num}: not valid CSV: {error}") from error


def _read_parquet(path: Path) -> RowSequence:
    import pyarrow  # type: ignore[import-untyped]
    from datasets import Dataset
    from pyarrow import parquet

    try:
        rows: RowSequence = Dataset(parquet.read_table(path, memory_map=True))
    except pyarrow.ArrowException as error:
        raise UserError("path", f"{str(path)!r}: not a readable parquet file: {error}") from error
    return rows


def _read_saved(path: Path, split: str | None) -> RowSequence:
    """A folder written by `datasets`' save_to_disk, of one split or of several."""
    if not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        raise UserError(
            "path",
            f"{str(path)!r} is a folder that datasets' save_to_disk did not write; name its files instead, for "
            f"example {str(path / '*.jsonl')!r}",
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
