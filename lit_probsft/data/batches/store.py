"""Stores tokenized documents on disk as flat arrays, which are mapped into memory.

A folder holds `tokens.bin` (int32, the ids of all documents in a row), `mask.bin` (uint8, 1 if supervised),
`offsets.npy` (n + 1,), `rows.npy` (n,), `supervised.npy` (n,) and `meta.json`. It also holds `weights.npy` (n,) if a
weight is not 1, and `sources.npy` (n,) if there are several sources. A document is a slice of these arrays, so nothing
is parsed and workers share memory pages.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_probsft.data.rows.formats import IGNORED
from lit_probsft.storage.cache_entry import create_folder


class Documents:
    """Tokenized documents.

    Attributes:
        lengths: (n,) tokens of each document.
        supervised: (n,) supervised tokens of each document, counted after the shift.
        rows: (n,) the row of the source that each document was made from; dropped rows are missing.
        weights: (n,) factor of each document in the sum of a step's losses; None if all are 1.
        sources: (n,) the part of the source that each document comes from; None if the source has no parts.
        max_token_id: the largest id; -1 if there are no documents.
    """

    rows: NDArray[np.int64]
    supervised: NDArray[np.int64]
    lengths: NDArray[np.int64]
    weights: NDArray[np.float64] | None
    sources: NDArray[np.int64] | None
    max_token_id: int
    _offsets: NDArray[np.int64]
    _tokens: NDArray[np.int32]
    _mask: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Returns `(input_ids, labels)` of a document, each (t,)."""
        span = slice(self._offsets[index], self._offsets[index + 1])
        ids = self._tokens[span]
        return ids, np.where(self._mask[span], ids, np.int32(IGNORED))

    def fields(self, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Returns `weights` and `sources` of some documents, leaving out what is None."""
        arrays = {"weights": self.weights, "sources": self.sources}
        return {name: values[list(indices)] for name, values in arrays.items() if values is not None}

    def padding_id(self, pad_token_id: int) -> int:
        """Returns an id that pads these documents: `pad_token_id`, or their largest id where it is above all of them.

        Any token can pad. The model may lack a row for a pad token that was added to its tokenizer, but it needs one
        for every id in the documents.
        """
        return min(pad_token_id, max(self.max_token_id, 0))


class TokenStore(Documents):
    """The documents of one split, on disk.

    Attributes:
        meta: the counts stored with the tokens, the `fingerprint` of ids and masks, `max_token_id`, and the names of
            the `sources`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.max_token_id = self.meta["max_token_id"]
        self._offsets = np.load(folder / "offsets.npy")
        self.rows = np.load(folder / "rows.npy")
        self.supervised = np.load(folder / "supervised.npy")
        self.lengths = np.diff(self._offsets)
        self.weights = _load(folder / "weights.npy")
        self.sources = _load(folder / "sources.npy")
        self._tokens = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r")
        self._mask = np.memmap(folder / "mask.bin", dtype=np.uint8, mode="r")

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker maps the files itself. Pickling a memory map would copy it.
        return TokenStore, (self.folder,)


class InMemory(Documents):
    """Documents in memory.

    Args:
        documents: in order.
        parts: keep `sources`, because the source has several parts.
    """

    def __init__(self, documents: Sequence[Document], *, parts: bool) -> None:
        self._tokens = np.concatenate([np.zeros(0, dtype=np.int32), *(document.ids for document in documents)])
        labels = np.concatenate([np.zeros(0, dtype=np.int32), *(document.labels for document in documents)])
        self._tokens, self._mask = self._tokens.astype(np.int32), (labels != IGNORED).astype(np.uint8)
        self.lengths = np.array([len(document.ids) for document in documents], dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        firsts = self._mask[self._offsets[:-1]].astype(np.int64)  # no position predicts a first token
        self.supervised = np.diff(np.concatenate([[0], np.cumsum(self._mask)])[self._offsets]) - firsts
        self.rows = np.array([document.row for document in documents], dtype=np.int64)
        weights = np.array([document.weight for document in documents], dtype=np.float64)
        self.weights = None if (weights == 1).all() else weights
        self.sources = np.array([document.source for document in documents], dtype=np.int64) if parts else None
        self.max_token_id = int(self._tokens.max(initial=-1))


def _load(path: Path) -> Any:
    return np.load(path) if path.exists() else None


class Document(NamedTuple):
    """A row as tokens.

    Attributes:
        row: index of the row in the source.
        ids, labels: (t,) lists or arrays of integers; labels are -100 where masked.
        weight: factor of its tokens in the sum of a step's losses.
        source: index of the part of the source it comes from.
    """

    row: int
    ids: Any
    labels: Any
    weight: float = 1.0
    source: int = 0


def write_store(
    folder: Path,
    documents: Iterable[tuple[Any, ...]],
    counts: Callable[[], dict[str, Any]],
    sources: Sequence[str] = (),
) -> TokenStore:
    """Writes `documents` to `folder` as they arrive.

    Args:
        folder: must not exist.
        documents: each a `Document`, or its first fields.
        counts: called after the last document; the result goes to `meta`.
        sources: names of the source's parts, if it has several.

    Raises:
        EmptyStoreError: there is no document. Nothing is left on disk.
        UserError: the folder could not be written. Nothing is left on disk.
    """
    try:
        with create_folder(folder, "data.cache_dir") as unfinished:
            digest = hashlib.sha256()
            offsets, rows, supervised, max_token_id = [0], [], [], -1
            weights, origins = [], []
            with (unfinished / "tokens.bin").open("wb") as tokens, (unfinished / "mask.bin").open("wb") as masks:
                for row, ids, labels, weight, source in itertools.starmap(Document, _apart(documents)):
                    token_array = np.asarray(ids, dtype=np.int32)
                    mask = (np.asarray(labels) != IGNORED).astype(np.uint8)
                    for stream, array in ((tokens, token_array), (masks, mask)):
                        stream.write(array.tobytes())
                        digest.update(array.tobytes())
                    digest.update(b"|" if weight == 1 else f"|{weight!r}|".encode())
                    offsets.append(offsets[-1] + len(ids))
                    rows.append(row)
                    weights.append(weight)
                    origins.append(source)
                    supervised.append(int(mask[1:].sum()))
                    max_token_id = max(max_token_id, int(token_array.max(initial=-1)))
            if not rows:  # an empty file cannot be mapped
                raise EmptyStoreError(counts())
            for name, values in (("offsets", offsets), ("rows", rows), ("supervised", supervised)):
                np.save(unfinished / f"{name}.npy", np.asarray(values, dtype=np.int64))
            if set(weights) != {1.0}:
                np.save(unfinished / "weights.npy", np.asarray(weights, dtype=np.float64))
            if sources:
                np.save(unfinished / "sources.npy", np.asarray(origins, dtype=np.int64))
            meta = {
                **counts(),
                "sources": list(sources),
                "kept": len(rows),
                "tokens": offsets[-1],
                "supervised_tokens": sum(supervised),
                "max_length": int(np.diff(offsets).max()),
                "fingerprint": digest.hexdigest(),
                "max_token_id": max_token_id,
            }
            (unfinished / "meta.json").write_text(json.dumps(meta, indent=1))
    except _SourceError as error:
        raise error.args[0] from None
    return TokenStore(folder)


class EmptyStoreError(Exception):
    """No document is left; `args[0]` holds the counts."""


class _SourceError(Exception):
    """An OSError of the rows, not of writing them."""


def _apart(documents: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    try:
        yield from documents
    except OSError as error:
        raise _SourceError(error) from error
