"""Text with supervised spans to token ids and labels.

The text is cut at the edges of the spans and each piece is tokenized by itself. That is what happens at inference: the
prompt is tokenized, and what follows is generated. So no token straddles the edge of a turn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from lit_probsft.data.rows.formats import IGNORED
from lit_probsft.data.tokens.control_tokens import Quoted, errors_restored, quoting_tokenizer, unused_character
from lit_probsft.data.tokens.rendering import Span
from lit_probsft.errors import UserError

_Piece = tuple[str, bool]
"""A text, and whether it is supervised."""


def encode_spans(
    tokenizer: Any, text: str, spans: Sequence[Span], quoted: Quoted | None = None
) -> tuple[list[int], list[int]]:
    """Tokenize a text with supervised `spans`.

    Args:
        tokenizer: a fast tokenizer.
        text: to be tokenized.
        spans: ascending, without overlaps.
        quoted: what characters of the text stand for; see `control_tokens.py`. These texts become ordinary tokens.

    Returns:
        Token ids (T,), and labels (T,): the ids in the spans and -100 elsewhere.

    Raises:
        UserError: a token straddles the edge of a span, or a quoted text cannot be written as ordinary tokens.
    """
    pieces = _pieces(text, spans)
    encoded = _encode_pieces(tokenizer, pieces) if not quoted else _encode_quoted(tokenizer, pieces, quoted)
    input_ids: list[int] = []
    labels: list[int] = []
    for ids, supervised in encoded:
        input_ids += ids
        labels += ids if supervised else [IGNORED] * len(ids)
    return input_ids, labels


def _pieces(text: str, spans: Sequence[Span]) -> list[_Piece]:
    """Cut the text at the spans: all of it in order, without empty pieces."""
    pieces, position = [], 0
    for start, end in spans:
        pieces += [(text[position:start], False), (text[start:end], True)]
        position = end
    pieces.append((text[position:], False))
    return [piece for piece in pieces if piece[0]]


def _encode_quoted(tokenizer: Any, pieces: Sequence[_Piece], quoted: Quoted) -> list[tuple[list[int], bool]]:
    """The ids of each piece, with the quoted texts as ordinary tokens."""
    mark = unused_character("".join([*quoted, *quoted.values(), *(text for text, _ in pieces)]))
    writer = quoting_tokenizer(tokenizer, mark)
    renamed = [(writer.rename(text, quoted), supervised) for text, supervised in pieces]
    with errors_restored({name: token for token, name in writer.names.items()}):
        encoded = _encode_pieces(writer.tokenizer, renamed)
    return [(writer.original_ids(ids), supervised) for ids, supervised in encoded]


def _encode_pieces(tokenizer: Any, pieces: Sequence[_Piece]) -> list[tuple[list[int], bool]]:
    """The ids of each piece, and whether it is supervised."""
    if not pieces:
        return []
    if _is_concatenative(tokenizer):
        return [(_encode(tokenizer, piece), supervised) for piece, supervised in pieces]
    # This tokenizer writes something before every text, such as a blank. So the text is tokenized as a whole, and each
    # token belongs to the piece in which it starts.
    text = "".join(piece for piece, _ in pieces)
    encoding = _call(tokenizer, text, return_offsets_mapping=True)
    result, position, end = [], 0, 0
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    for piece, supervised in pieces:
        first, end = position, end + len(piece)
        while position < len(ids) and (offsets[position][0] < end or end == len(text)):
            position += 1
        if position > first and offsets[position - 1][1] > end:
            raise UserError(
                "tokenizer",
                "one token straddles the edge of the assistant's turn: "
                f"{text[max(end - 20, 0) : end]!r} + {text[end : end + 20]!r}",
            )
        result.append((ids[first:position], supervised))
    return result


def _encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, without special tokens around it."""
    backend = tokenizer.backend_tokenizer
    bypass = (
        _only_calls_backend(tokenizer)
        # transformers resets these when an earlier call, or the tokenizer's file, has left them on.
        and backend.truncation is None
        and backend.padding is None
        and backend.encode_special_tokens == tokenizer.split_special_tokens
    )
    if bypass:
        # `fast` skips the offsets. One text at a time, because a list is spread over threads, which costs more than the
        # few pieces of a row can gain.
        ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    else:
        ids = _call(tokenizer, text)["input_ids"]
    return ids


def _call(tokenizer: Any, text: str, **options: Any) -> Any:
    # `verbose=False`: texts longer than the model's context are reported once for the data set, not for each text.
    return tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)


@functools.lru_cache(maxsize=16)
def _only_calls_backend(tokenizer: Any) -> bool:
    """Whether this tokenizer returns the ids of its backend: some have code of their own in between (Code Llama's, for
    infilling)."""
    from transformers import PreTrainedTokenizerFast

    between = ("__call__", "_switch_to_input_mode", "_encode_plus", "_convert_encoding")
    kind = type(tokenizer)
    return all(getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in between)


@functools.lru_cache(maxsize=16)
def _is_concatenative(tokenizer: Any) -> bool:
    """Whether the ids of two texts, concatenated, decode to the two texts concatenated."""
    ids = _encode(tokenizer, "x") + _encode(tokenizer, "y")
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text == "xy"
