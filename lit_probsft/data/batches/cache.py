"""Caches tokens and trained tokenizers between runs. The key covers everything that decides the content."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_probsft.data.batches.duplicates import digests
from lit_probsft.data.batches.prepare import VERSION, Counts, tokenize_rows
from lit_probsft.data.batches.row_tokenizer import Recipe
from lit_probsft.data.batches.store import EmptyStoreError, TokenStore, create_folder, write_store
from lit_probsft.data.rows.splits import Split
from lit_probsft.data.tokens.tokenizers import TokenizerSource, tokenizer_fingerprint
from lit_probsft.errors import UserError


def cached_tokenizer(cache: Path, source: TokenizerSource, split: Split) -> Any:
    """Loads the tokenizer that `source` trains on `split`; trains it if the cache does not have it.

    Args:
        cache: the cache's folder.
        source: a source that trains a tokenizer.
        split: the training rows.
    """
    _check_folder(cache)
    folder = cache / "tokenizers" / _key([VERSION, source.describe(), split.identity()])
    if not folder.is_dir():
        with create_folder(folder) as unfinished:
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
    """Loads the tokenized documents of `split`; tokenizes them if the cache does not have them.

    Args:
        cache: the cache's folder.
        split: the rows.
        tokenizer: a fast tokenizer.
        recipe: how rows are tokenized.
        without: documents to drop.
        num_proc: number of processes that tokenize.
        progress: show a progress bar.

    Raises:
        UserError: a row cannot be used, or no document is left.
    """
    _check_folder(cache)
    template = None if recipe.plain_text else recipe.chat_template or tokenizer.chat_template
    excluded = None if without is None else without.meta["fingerprint"]
    key = _key([VERSION, split.identity(), tokenizer_fingerprint(tokenizer), template, asdict(recipe), excluded])
    folder = cache / "tokens" / key
    if folder.is_dir():
        return TokenStore(folder)
    counts = Counts()
    tokenized = tokenize_rows(
        split,
        tokenizer,
        recipe,
        counts,
        without=frozenset() if without is None else digests(without),
        num_proc=num_proc,
        progress=progress,
    )
    try:
        return write_store(folder, tokenized, lambda: asdict(counts), split.loaded.source.parts)
    except EmptyStoreError as error:
        raise UserError(
            f"data.{split.loaded.argument}",
            f"expected at least one usable row, got none of {counts.rows} ({counts.dropped} dropped, {counts.skipped} "
            f"skipped); the first: {counts.dropped_rows[0]['reason']}",
        ) from error


def _check_folder(cache: Path) -> None:
    existing = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError("data.cache_dir", f"expected a folder, got {str(cache)!r}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError("data.cache_dir", f"expected a writable folder, got {str(cache)!r}")


def _key(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
