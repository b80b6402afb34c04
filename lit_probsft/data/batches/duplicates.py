"""Finds training documents that are also in the validation set, by a digest of ids and mask."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from lit_probsft.data.batches.store import Document, TokenStore


def digests(store: TokenStore) -> frozenset[bytes]:
    """Returns the digests of a store's documents."""
    return frozenset(_digest(*store[index]) for index in range(len(store)))


def occurs_in(known: frozenset[bytes], document: Document | None) -> bool:
    """Whether the document, if there is one, has the ids and the mask of one of the documents with these digests."""
    return bool(known) and document is not None and _digest(document.ids, document.labels) in known


def overlap(store: TokenStore, other: TokenStore) -> int:
    """Counts the documents of `store` that `other` also has, with the same ids and mask."""
    known = digests(other)
    return sum(_digest(*store[index]) in known for index in range(len(store)))


def _digest(ids: Any, labels: Any) -> bytes:
    return hashlib.blake2b(np.asarray([ids, labels], dtype=np.int32).tobytes(), digest_size=16).digest()
