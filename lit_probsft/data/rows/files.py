"""Local files and folders of rows: which ones a path names, how each kind is read, and what identifies them."""

from __future__ import annotations

import contextlib
import glob
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import override

from lit_probsft.data.rows.compression import DECOMPRESSORS, compression
from lit_probsft.data.rows.csv_files import csv_rows
from lit_probsft.data.rows.json_files import read_json, read_json_lines, stream_json_lines
from lit_probsft.data.rows.parquet_files import ParquetRowGroups, UsedColumns, read_parquet
from lit_probsft.data.rows.readers import (
    BrokenRow,
    IndexedReader,
    IteratorReader,
    LazyRow,
    Reader,
    RowSequence,
    part_of,
)
from lit_probsft.data.rows.saved_folders import check_saved, read_saved
from lit_probsft.errors import UserError, near_matches


class Kind(NamedTuple):
    """How files of a kind are read.

    Attributes:
        read: returns all rows of a file.
        stream: returns a reader of a file at a position.
        compressible: whether such a file may be compressed as a whole.
    """

    read: Callable[[Path, UsedColumns], RowSequence]
    stream: Callable[[Path, UsedColumns, Any], Reader]
    compressible: bool = True


def _separated_by(separator: str) -> Kind:
    return Kind(
        lambda path, used: list(csv_rows(path, separator)),
        lambda path, used, position: IteratorReader(csv_rows(path, separator), position),
    )


KINDS = {
    ".json": Kind(
        lambda path, used: read_json(path), lambda path, used, position: IndexedReader(read_json(path), position)
    ),
    ".jsonl": Kind(
        lambda path, used: read_json_lines(path), lambda path, used, position: stream_json_lines(path, position)
    ),
    ".csv": _separated_by(","),
    ".tsv": _separated_by("\t"),
    ".parquet": Kind(
        read_parquet,
        lambda path, used, position: IndexedReader(ParquetRowGroups(path, used), position),
        compressible=False,
    ),
}
"""The kinds of files by suffix. A `compressible` one may have a suffix of `DECOMPRESSORS` after it."""


def kind_of(path: Path) -> Kind | None:
    """Return how a file is read, judging by its name; None if it has no known suffix."""
    compressed = compression(path)
    kind = KINDS.get((path.with_suffix("") if compressed else path).suffix.lower())
    return None if kind is None or (compressed and not kind.compressible) else kind


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
        return [_readable(expanded)]
    if glob.has_magic(path):
        matches = sorted(Path(match) for match in glob.glob(str(expanded), recursive=True))
        if not matches:
            raise UserError("path", f"no file matches {path!r}")
        return [_readable(match) for match in matches]
    if path.lstrip().startswith("{"):
        raise UserError(
            "path", f"expected a file, or a mapping with class_path and init_args of that class, got {path[:80]!r}"
        )
    if "://" in path:
        raise UserError("path", f"expected a local file or the name of a data set on the hub, got the address {path!r}")
    looks_local = kind_of(expanded) is not None or path.startswith((".", "~", "/")) or path.count("/") > 1
    if not looks_local:
        return None
    folder = expanded.parent
    if not folder.is_dir():
        raise UserError("path", f"no such file: {path!r} (there is no folder {str(folder)!r} either)")
    names = [entry.name for entry in folder.iterdir()]
    raise UserError("path", f"no such file: {path!r}.{near_matches(expanded.name, names)}")


def read_files(paths: list[Path], split: str | None, used: UsedColumns) -> RowSequence:
    """Read the rows of all files in order.

    A line that cannot be read becomes a `BrokenRow`, as long as the lines after it can be read.

    Args:
        paths: files, or one saved folder.
        split: of a saved folder.
        used: says which columns will be used. The others are not read from files that allow it.

    Raises:
        UserError: a file cannot be read at all.
    """
    parts: list[RowSequence] = []
    for path in paths:
        with _file_errors(path):
            parts.append(read_saved(path, split) if path.is_dir() else _known_kind(path).read(path, used))
    if len(parts) == 1:
        return parts[0]
    return JoinedRows(parts)


class FilesReader(Reader):
    """Reads several files in order. Its position is the index of the file, and the position in it."""

    def __init__(
        self, paths: Sequence[Path], split: str | None, position: Sequence[Any] | None, used: UsedColumns
    ) -> None:
        self._paths, self._split, self._used = paths, split, used
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
        with _file_errors(self._paths[self._file]):
            return self._reader.next()

    @property
    @override
    def position(self) -> list[Any]:
        return [self._file, self._reader.position]

    def _open(self, position: Any) -> Reader:
        path = self._paths[self._file]
        with _file_errors(path):
            if path.is_dir():
                return IndexedReader(read_saved(path, self._split), position)
            return _known_kind(path).stream(path, self._used, position)


class JoinedRows(Sequence[Any]):
    """The rows of several sequences in order.

    Attributes:
        sequences: the sequences.
    """

    def __init__(self, sequences: Sequence[RowSequence]) -> None:
        self.sequences = sequences
        self._ends = list(accumulate(len(rows) for rows in sequences))

    @override
    def __len__(self) -> int:
        return self._ends[-1]

    @override
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sequence, row = self.find(range(len(self))[index])
        return self.sequences[sequence][row]

    def find(self, index: int) -> tuple[int, int]:
        """Index of the sequence that row `index` belongs to, and the row's index in it."""
        return part_of(self._ends, index)


def refuse_broken(rows: RowSequence) -> Sequence[Mapping[str, Any]]:
    """Return `rows` if no row is broken.

    Raises:
        UserError: the error of the first `BrokenRow`.
    """
    for part in rows.sequences if isinstance(rows, JoinedRows) else [rows]:
        for row in part if isinstance(part, list) else ():  # only files parsed line by line can have broken rows
            if isinstance(row, BrokenRow):
                raise row.error
    intact: Any = rows
    checked: Sequence[Mapping[str, Any]] = intact
    return checked


def hash_files(paths: list[Path]) -> str:
    """Digest every byte of the files and folders, in order."""
    digest = hashlib.sha256()
    for _, file in _files_in(paths):
        with _file_errors(file), file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def file_sizes(paths: list[Path]) -> list[list[Any]]:
    """Return name and size in bytes of each file, and of each file in a folder, in order."""
    return [[str(file.relative_to(path.parent)), file.stat().st_size] for path, file in _files_in(paths)]


def _known_kind(path: Path) -> Kind:
    kind = kind_of(path)
    if kind is None:
        compressible = [suffix for suffix, known in KINDS.items() if known.compressible]
        others = [suffix for suffix, known in KINDS.items() if not known.compressible]
        raise UserError(
            "path",
            f"expected a file that ends in {', '.join([*compressible, *others])}, or in {' or '.join(DECOMPRESSORS)} "
            f"after {', '.join(compressible[:-1])} or {compressible[-1]}, got {str(path)!r}",
        )
    return kind


def _readable(path: Path) -> Path:
    """`path`, if it is a saved folder or a file with an end, unlike a device or a pipe."""
    if path.is_dir():
        check_saved(path)
    elif path.exists() and not path.is_file() and kind_of(path) is not None:
        raise UserError("path", f"expected a file, {str(path)!r} is a device, a pipe or a socket")
    return path


def _files_in(paths: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Each path with itself, or with each file in that folder."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                yield path, file


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Raise an OSError of this block as a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError("path", f"cannot read {str(path)!r}: {error.strerror or error}") from error
