"""Caches tokens and trained tokenizers between runs. The key covers everything that decides the content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_probsft.data.batches.duplicates import digests
from lit_probsft.data.batches.prepare import VERSION, Counts, tokenize_rows
from lit_probsft.data.batches.row_tokenizer import Recipe
from lit_probsft.data.batches.store import EmptyStoreError, TokenStore, write_store
from lit_probsft.data.rows.splits import Split
from lit_probsft.data.tokens.tokenizers import TokenizerSource, tokenizer_fingerprint
from lit_probsft.errors import UserError, first_line
from lit_probsft.storage.cache_entry import create_folder, open_entry

_LAYOUT = 2
"""Part of every key. Raise it if entries have other files."""


def cached_tokenizer(cache: Path, source: TokenizerSource, split: Split) -> Any:
    """Loads the tokenizer that `source` trains on `split`; trains it if the cache does not have it.

    Args:
        cache: the cache's folder.
        source: a source that trains a tokenizer.
        split: the training rows.
    """
    folder = cache / "tokenizers" / _key([VERSION, _LAYOUT, source.describe(), split.identity()])

    def write(folder: Path) -> None:
        tokenizer = source.load(split.texts)
        with create_folder(folder, "data.cache_dir") as unfinished:
            try:
                tokenizer.save_pretrained(unfinished)
            except Exception as error:  # tokenizers reports a full disk as a plain Exception
                raise OSError(0, first_line(error)) from error

    from transformers import PreTrainedTokenizerFast

    return open_entry(folder, PreTrainedTokenizerFast.from_pretrained, write, "data.cache_dir")


def cached_store(
    cache: Path,
    split: Split,
    tokenizer: Any,
    recipe: Recipe,
    *,
    without: TokenStore | None = None,
    num_proc: int | None = None,
    progress: bool = True,
    contents: bool = True,
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
        contents: check every byte of a cached entry; otherwise only the sizes of its files.

    Raises:
        UserError: a row cannot be used, no document is left, or the cache cannot be written.
    """
    template = None if recipe.plain_text else recipe.chat_template or tokenizer.chat_template
    excluded = None if without is None else without.meta["fingerprint"]
    key = _key(
        [VERSION, _LAYOUT, split.identity(), tokenizer_fingerprint(tokenizer), template, asdict(recipe), excluded]
    )
    folder = cache / "tokens" / key

    def write(folder: Path) -> None:
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
            write_store(folder, tokenized, lambda: asdict(counts), split.loaded.source.parts)
        except EmptyStoreError as error:
            raise UserError(
                f"data.{split.loaded.argument}",
                f"expected at least one usable row, got none of {counts.rows} ({counts.dropped} dropped, "
                f"{counts.skipped} skipped); the first: {counts.dropped_rows[0]['reason']}",
            ) from error

    return open_entry(folder, TokenStore, write, "data.cache_dir", contents=contents)


def check_cache(cache: Path) -> None:
    """Creates the cache's folder if it is missing.

    Raises:
        UserError: it is a file, or it cannot be created.
    """
    existing = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError("data.cache_dir", f"expected a folder, got {str(cache)!r}: {existing} is a file")
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"expected a folder that can be created, got {str(cache)!r}: {first_line(error)}"
        raise UserError("data.cache_dir", problem) from error


def _key(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
