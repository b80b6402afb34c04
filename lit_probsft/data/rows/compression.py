"""Opens files, decompressed where their name says that they are compressed."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from typing_extensions import override

from lit_probsft.errors import UserError, first_line


def _open_zstd(path: Path) -> Any:
    import pyarrow  # type: ignore[import-untyped]

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


DECOMPRESSORS: dict[str, Callable[[Path], Any]] = {".gz": gzip.GzipFile, ".zst": _open_zstd}
"""Suffixes of compressed files."""

_BLOCK = 1 << 16


def compression(path: Path) -> str:
    """The suffix that says how a file is compressed; empty if it is not."""
    suffix = path.suffix.lower()
    return suffix if suffix in DECOMPRESSORS else ""


@contextlib.contextmanager
def open_binary(path: Path, start: int = 0) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed, at byte `start` of its content.

    A compressed file is read from its beginning to get there.

    Raises:
        UserError: the compressed data is damaged or incomplete; here, or at a later read.
        OSError: the file cannot be opened.
    """
    suffix = compression(path)
    if not suffix:
        with path.open("rb") as plain:
            plain.seek(start)
            yield plain
        return
    with path.open("rb"):  # a missing file is no damaged one
        pass
    with io.BufferedReader(_Decompressed(path, suffix), _BLOCK) as stream:
        while start > 0:
            start -= len(stream.read(min(start, _BLOCK))) or start
        yield cast(BinaryIO, stream)


class _Decompressed(io.RawIOBase):
    """The content of a compressed file."""

    def __init__(self, path: Path, suffix: str) -> None:
        self._path = path
        self._stream: Any = None  # until it is open
        with self._errors():
            self._stream = DECOMPRESSORS[suffix](path)

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        with self._errors():
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    @override
    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        super().close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError, zlib.error) as error:
            problem = f"{str(self._path)!r}: damaged or incomplete compressed file: {first_line(error)}"
            raise UserError("path", problem) from error
