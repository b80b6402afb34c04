"""What is worth keeping between runs, under a key made of everything that decides it, so that nothing read is stale."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lit_probsft.data.batches.prepare import VERSION, Counts, Recipe, documents
from lit_probsft.data.batches.store import EmptyStoreError, TokenStore, write_store, written_whole
from lit_probsft.data.rows.splits import Split
from lit_probsft.data.tokens.tokenizers import TokenizerSource, tokenizer_fingerprint
from lit_probsft.errors import UserError


def cached_tokenizer(cache: Path, source: TokenizerSource, split: Split) -> Any:
    """The tokenizer that `source` learns from `split`, learnt once.

    Args:
        cache: the folder of all that is kept.
        source: one that learns.
        split: the training rows.
    """
    _check_folder(cache)
    folder = cache / "tokenizers" / _key([VERSION, source.describe(), split.identity()])
    if not folder.is_dir():
        with written_whole(folder) as unfinished:
            source.load(split.texts).save_pretrained(unfinished)
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def cached_store(
    cache: Path,
    split: Split,
    tokenizer: Any,
    recipe: Recipe,
    *,
    without: TokenStore | None = None,
    num_proc: int | None = None,
    progress: bool = True,
) -> TokenStore:
    """The tokenized documents of `split`, tokenized once.

    Args:
        cache: the folder of all that is kept.
        split: the rows.
        tokenizer: a fast tokenizer.
        recipe: what is made of them.
        without: documents that are left out where they occur.
        num_proc: processes that tokenize.
        progress: show a bar.

    Raises:
        UserError: a row cannot be used, or none is left.
    """
    _check_folder(cache)
    template = None if recipe.plain_text else recipe.chat_template or tokenizer.chat_template
    excluded = None if without is None else without.meta["fingerprint"]
    key = _key([VERSION, split.identity(), tokenizer_fingerprint(tokenizer), template, asdict(recipe), excluded])
    folder = cache / "tokens" / key
    if folder.is_dir():
        return TokenStore(folder)
    counts = Counts()
    others = frozenset() if without is None else digests(without)
    found = documents(
        split,
        tokenizer,
        recipe,
        counts,
        without=lambda document: (
            "data.duplicates: it is in data.validation too" if others and digest(*document[1:3]) in others else None
        ),
        num_proc=num_proc,
        progress=progress,
    )
    try:
        return write_store(folder, found, lambda: asdict(counts), split.loaded.source.parts)
    except EmptyStoreError as error:
        raise UserError(
            f"data.{split.loaded.argument}",
            f"expected rows that can be used, all {counts.rows} were lost ({counts.dropped} dropped, {counts.skipped} "
            f"skipped); the first: {counts.dropped_rows[0]['reason']}",
        ) from error


def digests(store: TokenStore) -> frozenset[bytes]:
    """What tells the documents of a store from any other: ids and mask."""
    return frozenset(digest(*store[index]) for index in range(len(store)))


def overlap(store: TokenStore, other: TokenStore) -> int:
    """How many documents of `store` occur in `other` too, token by token."""
    others = digests(other)
    return sum(digest(*store[index]) in others for index in range(len(store)))


def digest(ids: Any, labels: Any) -> bytes:
    """What tells a document from any other: ids and mask."""
    return hashlib.blake2b(np.asarray([ids, labels], dtype=np.int32).tobytes(), digest_size=16).digest()


def _check_folder(cache: Path) -> None:
    found = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    if not found.is_dir():
        raise UserError("data.cache_dir", f"expected a folder, got {str(cache)!r}: {found} is a file")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UserError("data.cache_dir", f"expected a folder that can be written to, got {str(cache)!r}")


def _key(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
