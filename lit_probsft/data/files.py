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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError, near_matches

RowSequence = Sequence[Mapping[str, Any]]

SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")


def local_paths(path: str | list[str]) -> list[Path] | None:
    """The local files (or one saved folder) that `path` means, in order; None when it is the name of a hub data set.

    Raises:
        UserError: it is a path, a glob or a list, but nothing is there.
    """
    if isinstance(path, list):
        if not path:
            raise UserError("path: expected at least one file, got an empty list")
        found = [local_paths(item) for item in path]
        if any(paths is None for paths in found):
            raise UserError(f"path: a list may hold local files only, got {path}")
        return [file for paths in found if paths is not None for file in paths]
    if not path:
        raise UserError("path: expected a file, a folder or the name of a data set, got an empty text")
    expanded = Path(path).expanduser()
    if expanded.exists():
        return [expanded]
    if glob.has_magic(path):
        matches = sorted(Path(match) for match in glob.glob(str(expanded), recursive=True))
        if not matches:
            raise UserError(f"path: no file matches {path!r}")
        return matches
    looks_local = expanded.suffix.lower() in SUFFIXES or path.startswith((".", "~", "/")) or path.count("/") > 1
    if not looks_local:
        return None
    folder = expanded.parent
    if not folder.is_dir():
        raise UserError(f"path: no such file: {path!r} (there is no folder {str(folder)!r} either)")
    names = [entry.name for entry in folder.iterdir()]
    raise UserError(f"path: no such file: {path!r}.{near_matches(expanded.name, names)}")


def read_files(paths: list[Path], split: str | None) -> RowSequence:
    """The rows of all files, one after the other; `split` matters for a saved folder of several splits only."""
    parts = []
    for path in paths:
        try:
            parts.append(_read(path, split))
        except OSError as error:
            raise _unreadable(path, error) from error
    if len(parts) == 1:
        return parts[0]
    return [row for part in parts for row in part]


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
                    raise _unreadable(file, error) from error
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"path: expected a file that can be read, got {str(path)!r}: {error.strerror or error}")


def _read(path: Path, split: str | None) -> RowSequence:
    if path.is_dir():
        return _read_saved(path, split)
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        return _read_json(path)
    if suffix == ".csv":
        return _read_csv(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    raise UserError(f"path: expected a file that ends in {', '.join(SUFFIXES)}, got {str(path)!r}")


def _read_json(path: Path) -> RowSequence:
    """A JSON list of objects, or one object per line."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if data.lstrip()[:1] == b"[":
        try:
            rows = json.loads(data)
        except json.JSONDecodeError as error:
            raise UserError(f"path: {str(path)!r} line {error.lineno}: not valid JSON: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"path: {str(path)!r}: not UTF-8: {error}") from error
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise UserError(f"path: {str(path)!r} row {index}: expected an object, got {type(row).__name__}")
        return list(rows)
    rows = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"path: {str(path)!r} line {number}: not valid JSON: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"path: {str(path)!r} line {number}: not UTF-8: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"path: {str(path)!r} line {number}: expected an object, got {type(row).__name__}")
        rows.append(row)
    return rows


def _read_csv(path: Path) -> RowSequence:
    """Every value stays a text: an answer of `5` is not the number 5."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a setting of the whole process
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise UserError(f"path: {str(path)!r}: not UTF-8: {error}") from error
    except csv.Error as error:
        raise UserError(f"path: {str(path)!r} line {reader.line_num}: not valid CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    for index, row in enumerate(rows):
        if None in row:
            raise UserError(f"path: {str(path)!r} row {index}: expected {len(row) - 1} values, got more")
    return rows


def _read_parquet(path: Path) -> RowSequence:
    import pyarrow  # type: ignore[import-untyped]
    from datasets import Dataset
    from pyarrow import parquet

    try:
        rows: RowSequence = Dataset(parquet.read_table(path, memory_map=True))
    except pyarrow.ArrowException as error:
        raise UserError(f"path: {str(path)!r}: not a readable parquet file: {error}") from error
    return rows


def _read_saved(path: Path, split: str | None) -> RowSequence:
    """A folder written by `datasets`' save_to_disk, of one split or of several."""
    if not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        raise UserError(
            f"path: {str(path)!r} is a folder that datasets' save_to_disk did not write; name its files instead, for "
            f"example {str(path / '*.jsonl')!r}"
        )
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(path))
    if isinstance(loaded, DatasetDict):
        name = split or "train"
        if name not in loaded:
            raise UserError(
                f"split: no split {name!r} among {', '.join(loaded)} of {str(path)!r}.{near_matches(name, loaded)}"
            )
        loaded = loaded[name]
    rows: RowSequence = loaded
    return rows
