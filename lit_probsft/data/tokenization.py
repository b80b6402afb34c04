"""The one place where a mask is made: which tokens of a conversation are learnt.

A conversation is rendered to text by a chat template (or written out plainly), the assistant's turns are found in that
text, and the text is tokenized piece by piece between the edges of those turns. Cutting there is what happens at
inference: the prompt is tokenized by itself and what follows is generated, so no token can straddle the two.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.turns import Span, ends_with_special, find_turns, shown
from lit_probsft.errors import UserError

IGNORED = -100
"""The label of a token that is not supervised."""


def tokenize_conversation(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    chat_template: str | None = None,
    plain_text: bool = False,
    require_end_of_turn: bool = True,
) -> dict[str, list[int]]:
    """The ids of a conversation and which of them are learnt.

    Supervised are the assistant's turns, all of them, each up to and with the special token that ends it. They are
    found by the template's `{% generation %}` marks where it has them, otherwise by rendering the conversation up to
    each turn.

    Args:
        tokenizer: a fast tokenizer.
        messages: `{"role", "content"}`, the last of them the assistant's.
        chat_template: Jinja text in place of the tokenizer's own template.
        plain_text: no template: the turns one after the other, the end-of-text token after each of the assistant's, and
            in front the beginning-of-text token if this tokenizer puts one there.
        require_end_of_turn: refuse a turn that ends without a supervised special token; a model that never saw one
            does not stop.

    Returns:
        `input_ids` (t,) and `labels` (t,), equal to the ids where supervised and -100 elsewhere (not shifted).

    Raises:
        UserError: there is no template, or it refuses the roles; the turns cannot be found in what it renders; nothing
            or everything would be supervised, or not the end of a turn. The text is shown.
    """
    text, spans = find_turns(tokenizer, messages, chat_template=chat_template, plain_text=plain_text)
    if require_end_of_turn and not all(ends_with_special(tokenizer, text, span) for span in spans):
        raise UserError(
            "require_end_of_turn: the assistant's turn does not end with a supervised special token, so the model "
            "would never learn to stop (`false` allows it); the supervised part is between ⟦ and ⟧:\n"
            f"{shown(text, spans)}"
        )
    input_ids: list[int] = []
    labels: list[int] = []
    for ids, learnt in _tokenize_pieces(tokenizer, text, _pieces(text, spans)):
        input_ids += ids
        labels += ids if learnt else [IGNORED] * len(ids)
    supervised = sum(label != IGNORED for label in labels)
    if supervised in (0, len(labels)):
        raise UserError(
            f"{'messages' if plain_text else 'chat_template'}: the mask supervises "
            f"{'everything' if supervised else 'nothing'}: {supervised} of {len(labels)} tokens; the "
            f"supervised part is between ⟦ and ⟧:\n{shown(text, spans)}"
        )
    return {"input_ids": input_ids, "labels": labels}


def tokenize_prompt(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    chat_template: str | None = None,
    plain_text: bool = False,
) -> list[int]:
    """The ids of a conversation without its last turn of the assistant (if it ends with one), ready for generation.

    They are what training puts in front of that turn, token by token. Arguments as `tokenize_conversation`.
    """
    prompt = list(messages[:-1]) if messages[-1]["role"] == "assistant" else list(messages)
    text, spans = find_turns(
        tokenizer, prompt, chat_template=chat_template, plain_text=plain_text, generation_prompt=True
    )
    return [token for ids, _ in _tokenize_pieces(tokenizer, text, _pieces(text, spans)) for token in ids]


def _pieces(text: str, spans: Sequence[Span]) -> list[tuple[int, int, bool]]:
    """The text cut at the spans: (start, end, supervised), in order, without gaps and without empty pieces."""
    pieces, place = [], 0
    for start, end in spans:
        pieces += [(place, start, False), (start, end, True)]
        place = end
    pieces.append((place, len(text), False))
    return [piece for piece in pieces if piece[0] < piece[1]]


def _tokenize_pieces(
    tokenizer: Any, text: str, pieces: Sequence[tuple[int, int, bool]]
) -> list[tuple[list[int], bool]]:
    """The ids of each piece."""
    if not pieces:
        return []
    if _cuts_anywhere(tokenizer):
        encoded = _encode(tokenizer, [text[start:end] for start, end, _ in pieces])["input_ids"]
        return [(ids, learnt) for ids, (_, _, learnt) in zip(encoded, pieces, strict=True)]
    # This tokenizer writes something before every text it is given, such as a blank, so the whole is tokenized at once
    # and each token belongs to the piece in which it starts.
    encoding = _encode(tokenizer, [text], return_offsets_mapping=True)
    result, position = [], 0
    ids, offsets = encoding["input_ids"][0], encoding["offset_mapping"][0]
    for _, end, learnt in pieces:
        first = position
        while position < len(ids) and (offsets[position][0] < end or end == len(text)):
            position += 1
        if position > first and offsets[position - 1][1] > end:
            raise UserError(
                "tokenizer: it has one token across the edge of the assistant's turn, at: "
                f"{text[max(end - 20, 0) : end]!r} + {text[end : end + 20]!r}"
            )
        result.append((ids[first:position], learnt))
    return result


def _encode(tokenizer: Any, texts: list[str], **options: Any) -> Any:
    # `verbose=False`: the warning about texts longer than the model's context is given once for the data set, by
    # length.
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)


@functools.lru_cache(maxsize=16)
def _cuts_anywhere(tokenizer: Any) -> bool:
    """Whether the ids of two texts, put together, are ids of the two texts put together."""
    ids = [token for part in _encode(tokenizer, ["x", "y"])["input_ids"] for token in part]
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text == "xy"
