"""The one place where a mask is made: which tokens of a row are learnt.

A conversation is rendered to text by a chat template (or written out plainly), the assistant's turns are found in that
text, and the text is tokenized piece by piece between the edges of those turns. Cutting there is what happens at
inference: the prompt is tokenized by itself and what follows is generated, so no token can straddle the two.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lit_probsft.data.rows.conversation import is_learnt
from lit_probsft.data.rows.formats import IGNORED as IGNORED
from lit_probsft.data.tokens.rendering import Span, adds_beginning, shown
from lit_probsft.data.tokens.turns import answer_of, ends_with_special, find_turns
from lit_probsft.errors import UserError

Turns = Literal["all", "first", "last"]
"""Which of the assistant's turns are learnt."""

Reasoning = Literal["learn", "mask", "drop"]
"""What becomes of the assistant's reasoning: it is learnt, seen but not learnt, or taken out before rendering."""

_REASONING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_CLOSED = re.compile(r".*?</think>\s*", re.DOTALL)


def tokenize_conversation(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    plain_text: bool = False,
    require_end_of_turn: bool = True,
    turns: Turns = "all",
    reasoning: Reasoning = "learn",
) -> dict[str, list[int]]:
    """The ids of a conversation and which of them are learnt.

    Supervised are the assistant's turns, each up to and with the special token that ends it, and nothing that the
    assistant has not said; those with `train: False` are not. They are found by the template's `{% generation %}` marks
    where it has them, otherwise by rendering the conversation up to each turn; see `lit_probsft.data.tokens.turns`.

    Args:
        tokenizer: a fast tokenizer.
        messages: `{"role", "content", ...}` as `validate_conversation` gives them, the last of them the assistant's.
        tools: JSON schemas of what the assistant may call, for the template.
        chat_template: Jinja text in place of the tokenizer's own template.
        plain_text: no template: the turns one after the other, the end-of-text token after each of the assistant's, and
            in front the beginning-of-text token if this tokenizer puts one there.
        require_end_of_turn: refuse a turn that ends without a supervised special token; a model that never saw one
            does not stop.
        turns: learn all turns of the assistant, or the first or last of them only.
        reasoning: what becomes of `<think>...</think>` and `reasoning_content`.

    Returns:
        `input_ids` (t,) and `labels` (t,), equal to the ids where supervised and -100 elsewhere (not shifted).

    Raises:
        UserError: there is no template, or it refuses the roles; the turns cannot be found in what it renders, or not
            all that the assistant says; nothing or everything would be supervised, or not the end of a turn. The text
            is shown.
    """
    messages = _without_reasoning(messages) if reasoning == "drop" else messages
    text, spans = find_turns(
        tokenizer,
        messages,
        _wanted(messages, turns),
        tools=tools,
        chat_template=chat_template,
        plain_text=plain_text,
    )
    if require_end_of_turn and not all(ends_with_special(tokenizer, text, span) for span in spans):
        whose = "the given template" if chat_template is not None else "the tokenizer's chat template"
        raise UserError(
            "require_end_of_turn",
            "the assistant's turn does not end with a supervised special token, so the model "
            f"would never learn to stop (`false` allows it); {whose} does not end it, or marks its end as not "
            f"generated; the supervised part is between ⟦ and ⟧:\n{shown(text, spans)}",
        )
    if reasoning == "mask":
        spans = _without_thoughts(text, spans)
    input_ids, labels = _masked(tokenizer, text, spans)
    supervised = len(labels) - labels.count(IGNORED)
    if supervised in (0, len(labels)):
        raise UserError(
            "messages" if plain_text else "chat_template",
            "the mask supervises "
            f"{'everything' if supervised else 'nothing'}: {supervised} of {len(labels)} tokens; the "
            f"supervised part is between ⟦ and ⟧:\n{shown(text, spans)}",
        )
    return {"input_ids": input_ids, "labels": labels}


def tokenize_prompt(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    plain_text: bool = False,
    turns: Turns = "all",
    reasoning: Reasoning = "learn",
) -> list[int]:
    """The ids of a conversation without its last turn of the assistant (if it ends with one), ready for generation.

    They are what training puts in front of that turn, token by token. Arguments as `tokenize_conversation`.
    """
    messages = _without_reasoning(messages) if reasoning == "drop" else messages
    prompt = list(messages[:-1]) if messages[-1]["role"] == "assistant" else list(messages)
    wanted = [index for index in _wanted(messages, turns) if index < len(prompt)]
    text, spans = find_turns(
        tokenizer,
        prompt,
        wanted,
        tools=tools,
        chat_template=chat_template,
        plain_text=plain_text,
        generation_prompt=True,
    )
    if reasoning == "mask":
        spans = _without_thoughts(text, spans)
    return _masked(tokenizer, text, spans)[0]


def tokenize_text(tokenizer: Any, text: str) -> dict[str, list[int]]:
    """The ids of a text without turns, all of them learnt but the beginning-of-text token, if this tokenizer puts one
    there; the end-of-text token is put behind the text unless it stands there.

    Returns:
        `input_ids` (t,) and `labels` (t,), as `tokenize_conversation`.

    Raises:
        UserError: the tokenizer has no end-of-text token.
    """
    end = tokenizer.eos_token
    if end is None:
        raise UserError("text", "a text ends with the tokenizer's eos token, and this tokenizer has none")
    begin = tokenizer.bos_token if adds_beginning(tokenizer) else ""
    whole = begin + text.removeprefix(begin).removesuffix(end) + end
    input_ids, labels = _masked(tokenizer, whole, [(len(begin), len(whole))])
    return {"input_ids": input_ids, "labels": labels}


def _wanted(messages: Sequence[Mapping[str, Any]], turns: Turns) -> list[int]:
    """Which messages are learnt."""
    learnt = [index for index, message in enumerate(messages) if is_learnt(message)]
    return {"all": learnt, "first": learnt[:1], "last": learnt[-1:]}[turns]


def _without_reasoning(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as if the assistant had not thought aloud."""
    bare = []
    for message in messages:
        kept = {key: value for key, value in message.items() if key != "reasoning_content"}
        if message["role"] == "assistant" and "</think>" in message["content"]:
            kept["content"] = answer_of(message["content"])
            if not kept["content"] and not message.get("tool_calls"):
                raise UserError("reasoning", "expected an answer after </think>, got nothing")
        bare.append(kept)
    return bare


def _without_thoughts(text: str, spans: Sequence[Span]) -> list[Span]:
    """The spans without the reasoning in them."""
    kept: list[Span] = []
    for start, end in spans:
        opened = text[:start].rstrip().endswith("<think>")  # by the template, in what asks for the answer
        thought = _CLOSED.match(text, start, end) if opened else _REASONING.search(text, start, end)
        while thought is not None:
            if start < thought.start():
                kept.append((start, thought.start()))
            start, opened = thought.end(), False
            thought = _REASONING.search(text, start, end)
        if opened or "<think>" in text[start:end]:
            raise UserError(
                "reasoning", f"expected </think> after <think>, got none in:\n{shown(text, [(start, end)])}"
            )
        if start < end:
            kept.append((start, end))
    return kept


def _masked(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    """The ids of the text and their labels."""
    input_ids: list[int] = []
    labels: list[int] = []
    for ids, learnt in _tokenize_pieces(tokenizer, text, _pieces(text, spans)):
        input_ids += ids
        labels += ids if learnt else [IGNORED] * len(ids)
    return input_ids, labels


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
        return [(_ids(tokenizer, text[start:end]), learnt) for start, end, learnt in pieces]
    # This tokenizer writes something before every text it is given, such as a blank, so the whole is tokenized at once
    # and each token belongs to the piece in which it starts.
    encoding = _encode(tokenizer, text, return_offsets_mapping=True)
    result, position = [], 0
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    for _, end, learnt in pieces:
        first = position
        while position < len(ids) and (offsets[position][0] < end or end == len(text)):
            position += 1
        if position > first and offsets[position - 1][1] > end:
            raise UserError(
                "tokenizer",
                "it has one token across the edge of the assistant's turn, at: "
                f"{text[max(end - 20, 0) : end]!r} + {text[end : end + 20]!r}",
            )
        result.append((ids[first:position], learnt))
    return result


def _ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text with nothing put before or behind it."""
    backend = tokenizer.backend_tokenizer
    untouched = (
        _only_calls_backend(tokenizer)
        # Where the last call, or the tokenizer's file, has left something switched on, transformers switches it off.
        and backend.truncation is None
        and backend.padding is None
        and backend.encode_special_tokens == tokenizer.split_special_tokens
    )
    if untouched:
        # `fast` leaves out the offsets, which nobody reads. And one text at a time: a list is spread over threads,
        # which costs more than the few pieces of a row can gain.
        ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    else:
        ids = _encode(tokenizer, text)["input_ids"]
    return ids


def _encode(tokenizer: Any, text: str, **options: Any) -> Any:
    # `verbose=False`: the warning about texts longer than the model's context is given once for the data set, by
    # length.
    return tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)


@functools.lru_cache(maxsize=16)
def _only_calls_backend(tokenizer: Any) -> bool:
    """Whether this tokenizer gives a text the ids of its backend: some have code of their own between the two (Code
    Llama's, for what is to be filled in)."""
    from transformers import PreTrainedTokenizerFast

    between = ("__call__", "_switch_to_input_mode", "_encode_plus", "_convert_encoding")
    kind = type(tokenizer)
    return all(getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in between)


@functools.lru_cache(maxsize=16)
def _cuts_anywhere(tokenizer: Any) -> bool:
    """Whether the ids of two texts, put together, are ids of the two texts put together."""
    ids = _ids(tokenizer, "x") + _ids(tokenizer, "y")
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text == "xy"
