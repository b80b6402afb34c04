"""The beginning of a stream: its first rows, looked at before a model is loaded, and what it is known by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lit_probsft.data.batches.prepare import RowTokenizer
from lit_probsft.data.rows.splits import Item, LoadedSource
from lit_probsft.data.tokens.tokenizers import tokenizer_fingerprint
from lit_probsft.errors import UserError

_PROBED = 100  # rows among which one that can be used is looked for


def unread(loaded: LoadedSource) -> LoadedSource:
    """The same rows, none of them loaded: what the workers of a stream begin with."""
    return LoadedSource(loaded.source, loaded.argument, skips=loaded.skips)


def first_rows(loaded: LoadedSource, most: int) -> list[Item]:
    """The first rows of a stream, at most one pass of it."""
    items: list[Item] = []
    try:
        stream = loaded.source.stream()
        while len(items) < most and (following := stream.next()).passes == 0:
            items.append(Item(following.row(), following.source, following.row_index))
    except UserError as error:
        raise error.within(f"data.{loaded.argument}") from error
    return items


def check_beginning(row_tokenizer: RowTokenizer) -> None:
    """Refuse a stream whose first rows cannot be trained on.

    Raises:
        UserError: it cannot be read, the template is broken, or a row cannot be used that is not to be skipped.
    """
    row_tokenizer.check()
    for row, item in enumerate(first_rows(row_tokenizer.loaded, _PROBED)):
        if row_tokenizer.of(item, row).document is not None:
            break


def stream_fingerprint(row_tokenizer: RowTokenizer, options: Mapping[str, Any]) -> str:
    """A digest of what a stream is made of: its files or repository, recipe, tokenizer and the options of its order."""
    try:
        identity = row_tokenizer.loaded.source.identity()
    except UserError as error:
        raise error.within(f"data.{row_tokenizer.loaded.argument}") from error
    parts = [identity, asdict(row_tokenizer.recipe), tokenizer_fingerprint(row_tokenizer.tokenizer), *options.values()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
