"""Tokenized documents on disk: flat arrays that are mapped into memory, in a cache that is never half-written.

A folder holds `tokens.bin` (int32, all ids one after the other), `learnt.bin` (uint8, 1 where supervised),
`offsets.npy` (n + 1,), `rows.npy` (n,), `supervised.npy` (n,) and `meta.json`. A document is a slice: no parsing, and
workers share pages.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_probsft.data.tokenization import IGNORED


class TokenStore:
    """The documents of one split.

    Attributes:
        lengths: (n,) tokens of each document.
        supervised: (n,) supervised tokens of each, counted after the shift.
        rows: (n,) which row of the source each came from; rows that were dropped are missing.
        meta: the counts kept beside the tokens, with `fingerprint` (of ids and masks) and `max_token_id`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self._offsets = np.load(folder / "offsets.npy")
        self.rows: NDArray[np.int64] = np.load(folder / "rows.npy")
        self.supervised: NDArray[np.int64] = np.load(folder / "supervised.npy")
        self.lengths: NDArray[np.int64] = np.diff(self._offsets)
        self._tokens: NDArray[np.int32] = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r")
        self._learnt: NDArray[np.uint8] = np.memmap(folder / "learnt.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """`(input_ids, labels)` of a document, each (t,)."""
        place = slice(self._offsets[index], self._offsets[index + 1])
        ids = self._tokens[place]
        return ids, np.where(self._learnt[place], ids, np.int32(IGNORED))

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker maps the files itself; pickling a memory map would copy it.
        return TokenStore, (self.folder,)


Document = tuple[int, list[int], list[int]]
"""Row, ids, labels."""


def write_store(folder: Path, documents: Iterable[Document], counts: Callable[[], dict[str, int]]) -> TokenStore:
    """Writes `documents` to `folder` as they come; `counts()`, asked after the last, is kept in `meta`.

    Raises:
        EmptyStoreError: there was no document. Nothing is left on disk.
    """
    with written_whole(folder) as unfinished:
        digest = hashlib.sha256()
        offsets, rows, supervised, max_token_id = [0], [], [], -1
        with (unfinished / "tokens.bin").open("wb") as tokens, (unfinished / "learnt.bin").open("wb") as learnt:
            for row, ids, labels in documents:
                token_array = np.asarray(ids, dtype=np.int32)
                mask = (np.asarray(labels) != IGNORED).astype(np.uint8)
                for stream, array in ((tokens, token_array), (learnt, mask)):
                    stream.write(array.tobytes())
                    digest.update(array.tobytes())
                digest.update(b"|")
                offsets.append(offsets[-1] + len(ids))
                rows.append(row)
                supervised.append(int(mask[1:].sum()))
                max_token_id = max(max_token_id, int(token_array.max(initial=-1)))
        if not rows:  # an empty file cannot be mapped, and what is an error is not worth keeping
            raise EmptyStoreError(counts())
        for name, values in (("offsets", offsets), ("rows", rows), ("supervised", supervised)):
            np.save(unfinished / f"{name}.npy", np.asarray(values, dtype=np.int64))
        meta = {
            **counts(),
            "kept": len(rows),
            "tokens": offsets[-1],
            "supervised_tokens": sum(supervised),
            "max_length": int(np.diff(offsets).max()),
            "fingerprint": digest.hexdigest(),
            "max_token_id": max_token_id,
        }
        (unfinished / "meta.json").write_text(json.dumps(meta, indent=1))
    return TokenStore(folder)


class EmptyStoreError(Exception):
    """No document was left; `args[0]` are the counts."""


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` at the end of the block, or disappears if an exception leaves it.

    A process that is killed leaves at most a hidden folder that nobody reads. Where another process was first, its work
    is as good, and stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, for a rename is atomic only within one file system.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield unfinished
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
