"""A file of JSON objects, one per line, to which lines are appended one by one and survive a crash."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from lit_probsft.storage.atomic import atomic_write, report_write_errors, sync_file

SYNC_SECONDS = 5.0
"""Lines of this long may be lost when the machine fails; none when only the process does."""


class JsonLines:
    """Objects in a file, each on a line of its own. Several threads may append.

    Args:
        path: the file, which need not exist. Only one process may use it at a time.
        argument: names it in errors.
        key: fields that name an object; of several with the same name, the first counts.
        fits: whether a JSON object is one of the file's. Lines with others are broken; it may raise for these.

    Attributes:
        objects: by key, as they are in the file. Filled by `read`.
        broken: how many lines `read` set aside.
    """

    def __init__(self, path: Path, argument: str, key: Sequence[str], fits: Callable[[dict[str, Any]], bool]) -> None:
        self.path, self.argument = path, argument
        self._name, self._fits = itemgetter(*key), fits
        self.objects: dict[Any, dict[str, Any]] = {}
        self.broken = 0
        self._lock, self._file, self._synced = threading.Lock(), -1, 0.0

    @property
    def aside(self) -> Path:
        """The file with the broken lines."""
        return self.path.with_name(f"{self.path.stem}-broken{self.path.suffix}")

    def read(self) -> None:
        """Read the file, and repair it if it needs that.

        A last line without an end is what a crash leaves, and is dropped. Any other line that cannot be read is
        appended to the file `aside`.

        Raises:
            UserError: the file cannot be read or repaired; nothing is lost.
        """
        with report_write_errors(self.argument, self.path):
            *lines, torn = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
            self.objects, broken, count = {}, [], 0
            for line in lines:
                content = self._parsed(line)
                if content is None:
                    broken.append(line)
                    continue
                count += 1
                self.objects.setdefault(self._name(content), content)
            self.broken = len(broken)
            if broken:
                with open(self.aside, "ab") as file:
                    file.write(b"".join(line + b"\n" for line in broken))
                sync_file(self.aside)
        if broken or torn or count > len(self.objects):
            self.replace(self.objects.values())

    def replace(self, objects: Iterable[dict[str, Any]]) -> None:
        """Replace all lines, atomically.

        Raises:
            UserError: the file could not be written; the old one is unchanged.
        """
        kept = {self._name(content): content for content in objects}
        with report_write_errors(self.argument, self.path), atomic_write(self.path) as partial:
            partial.write_bytes(b"".join(map(_line, kept.values())))
            sync_file(partial)
        self.close()
        self.objects = kept

    def append(self, content: dict[str, Any]) -> None:
        """Append an object. When this returns, it survives the end of the process.

        Raises:
            UserError: the file could not be written; a part of the line may be at its end.
        """
        with self._lock, report_write_errors(self.argument, self.path):
            if self._file < 0:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            left = memoryview(_line(content))
            while left:
                left = left[os.write(self._file, left) :]
            self.objects[self._name(content)] = content
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()

    def close(self) -> None:
        """Wait until all lines are on the disk."""
        with self._lock, report_write_errors(self.argument, self.path):
            if self._file >= 0:
                file, self._file = self._file, -1
                try:
                    os.fsync(file)
                finally:
                    os.close(file)

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        try:
            content = json.loads(line.decode())
            return content if self._fits(content) else None
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None


def _line(content: Mapping[str, Any]) -> bytes:
    # Escapes are only needed for halves of surrogate pairs, which have no bytes in UTF-8.
    try:
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(content).encode() + b"\n"
