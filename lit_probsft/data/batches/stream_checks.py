"""Checks the first rows of a stream before a model is loaded, and identifies the stream by a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lit_probsft.data.batches.prepare import VERSION
from lit_probsft.data.batches.row_tokenizer import RowTokenizer
from lit_probsft.data.rows.splits import Item, LoadedSource
from lit_probsft.data.tokens.tokenizers import tokenizer_fingerprint
from lit_probsft.errors import UserError, errors_within

_MAX_CHECKED = 100  # rows searched for a usable one


def first_rows(loaded: LoadedSource, most: int) -> list[Item]:
    """Returns the first rows of a stream, of at most one pass."""
    items: list[Item] = []
    with errors_within(f"data.{loaded.argument}"):
        stream = loaded.source.stream()
        while len(items) < most and (following := stream.next()).passes == 0:
            items.append(Item(following.row(), following.source, following.row_index))
    return items


def check_not_trained(tokenizer_source: Any) -> None:
    """Refuse a tokenizer that is trained on the training rows, as a stream cannot be read beforehand."""
    if getattr(tokenizer_source, "learns", False):
        raise UserError(
            "data.tokenizer",
            f"expected an existing tokenizer with data.streaming, got {type(tokenizer_source).__name__}, which is "
            "trained on the training rows",
        )


def check_stream(row_tokenizer: RowTokenizer, max_steps: int | None) -> None:
    """Refuse a stream that cannot be trained on, judging by its first rows.

    Args:
        row_tokenizer: source, tokenizer and recipe.
        max_steps: of the trainer; None without one.

    Raises:
        UserError: `max_steps` is not set, the stream cannot be read, or a row is unusable and not to be skipped.
    """
    if max_steps is not None and max_steps < 1:
        raise UserError(
            "trainer.max_steps",
            f"expected the number of optimizer steps with data.streaming, since a stream has no end, got {max_steps}",
        )
    for row, item in enumerate(first_rows(row_tokenizer.loaded, _MAX_CHECKED)):
        if any(outcome.document is not None for outcome in row_tokenizer.tokenize_item(item, row)):
            break


def stream_fingerprint(row_tokenizer: RowTokenizer, options: Mapping[str, Any]) -> str:
    """Returns a digest of all that decides a stream's tokens and their order, without reading its rows.

    That is its files or repository, recipe, tokenizer, further options, and the version of the code that tokenizes.
    """
    with errors_within(f"data.{row_tokenizer.loaded.argument}"):
        identity = row_tokenizer.loaded.source.identity()
    tokens = [VERSION, asdict(row_tokenizer.recipe), tokenizer_fingerprint(row_tokenizer.tokenizer)]
    parts = [identity, *tokens, *options.values()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
