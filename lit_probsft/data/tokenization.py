"""The one place where a mask is made: which tokens of a conversation are learnt.

A conversation is rendered to text by a chat template (or written out plainly), the assistant's turns are found in that
text, and the text is tokenized piece by piece between the edges of those turns. Cutting there is what happens at
inference: the prompt is tokenized by itself and what follows is generated, so no token can straddle the two.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_probsft.data.collate import IGNORED
from lit_probsft.data.tokenizers import special_tokens
from lit_probsft.errors import UserError

Span = tuple[int, int]
"""First character and the one after the last."""

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SHOWN = 600  # characters of a text in an error


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
    text, spans = _render(tokenizer, messages, chat_template, plain_text, generation_prompt=False)
    special = _special_pattern(tokenizer)
    spans = [span for span in _trimmed_spans(text, spans, messages, special) if span[0] < span[1]]
    if require_end_of_turn and spans:
        for start, end in spans:
            if _last_special(text, (start, end), special) != end:
                raise UserError(
                    "require_end_of_turn: the assistant's turn does not end with a supervised special token, so the "
                    "model would never learn to stop (`false` allows it); the supervised part is between ⟦ and ⟧:\n"
                    f"{_shown(text, spans)}"
                )
    pieces = _pieces(text, spans)
    input_ids: list[int] = []
    labels: list[int] = []
    for ids, learnt in _tokenize_pieces(tokenizer, text, pieces):
        input_ids += ids
        labels += ids if learnt else [IGNORED] * len(ids)
    supervised = sum(label != IGNORED for label in labels)
    if supervised in (0, len(labels)):
        raise UserError(
            f"{'messages' if plain_text else 'chat_template'}: the mask supervises "
            f"{'everything' if supervised else 'nothing'}: {supervised} of {len(labels)} tokens; the "
            f"supervised part is between ⟦ and ⟧:\n{_shown(text, spans)}"
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
    text, spans = _render(tokenizer, prompt, chat_template, plain_text, generation_prompt=True)
    special = _special_pattern(tokenizer)
    spans = _trimmed_spans(text, spans, prompt, special)
    return [token for ids, _ in _tokenize_pieces(tokenizer, text, _pieces(text, spans)) for token in ids]


def _render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    chat_template: str | None,
    plain_text: bool,
    *,
    generation_prompt: bool,
) -> tuple[str, list[Span]]:
    """The whole text and where the assistant's turns are in it."""
    if plain_text:
        return _render_plain(tokenizer, messages)
    template = _template(tokenizer, chat_template)
    text, marks = _apply(tokenizer, template, messages, generation_prompt)
    if _GENERATION_MARK.search(template):
        if not generation_prompt and not marks:
            raise UserError(f"chat_template: its generation marks cover nothing of:\n{_shown(text, [])}")
        return text, marks
    special, spans = _special_pattern(tokenizer), []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = _apply(tokenizer, template, messages[:index], True)
        whole = index == len(messages) - 1 and not generation_prompt
        upto = text if whole else _apply(tokenizer, template, messages[: index + 1], False)[0]
        # Some templates add the end of the text behind the last turn only, so the two may part after this turn's end.
        span = len(before), len(os.path.commonprefix([upto, text]))
        ended = _find_end(text, span, message["content"], special) is not None
        if not (upto.startswith(before) and text.startswith(before) and (ended or text.startswith(upto))):
            raise UserError(
                "chat_template: it renders earlier turns differently once later ones follow, so the assistant's turn "
                f"{index} cannot be found; mark it with {{% generation %}} in a template of your own.\n"
                f"Up to the turn: {_shown(before, [])}\nWith the turn: {_shown(upto, [])}\n"
                f"The whole: {_shown(text, [])}"
            )
        spans.append(span)
    return text, spans


def _render_plain(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[Span]]:
    end = tokenizer.eos_token
    if end is None:
        raise UserError(
            "format: plain text ends each answer with the tokenizer's eos token, and this tokenizer has none"
        )
    text = tokenizer.bos_token if _adds_beginning(tokenizer) else ""
    spans = []
    for message in messages:
        start = len(text)
        text += message["content"]
        if message["role"] == "assistant":
            text += end
            spans.append((start, len(text)))
    return text, spans


def _template(tokenizer: Any, chat_template: str | None) -> str:
    if chat_template is not None:
        return chat_template
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            "chat_template: the tokenizer has no chat template; give one (a file or Jinja text), or set `format: plain`"
        ) from error
    return template


def _apply(
    tokenizer: Any, template: str, messages: Sequence[Mapping[str, str]], generation_prompt: bool
) -> tuple[str, list[Span]]:
    """The rendered text and the spans that the template marks itself."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, marks = render_jinja_template(
            [[dict(message) for message in messages]],
            chat_template=template,
            add_generation_prompt=generation_prompt,
            return_assistant_tokens_mask=bool(_GENERATION_MARK.search(template)),
            **tokenizer.special_tokens_map,
        )
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"chat_template: not valid Jinja, line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"chat_template: it refuses the roles {roles}: {error}") from error
    return rendered[0], [(start, end) for start, end in marks[0]] if marks else []


def _trimmed_spans(
    text: str, spans: Sequence[Span], messages: Sequence[Mapping[str, str]], special: re.Pattern[str]
) -> list[Span]:
    contents: list[str | None] = [message["content"] for message in messages if message["role"] == "assistant"]
    if len(contents) != len(spans):  # marks may leave turns out, or mark one twice
        contents = [None] * len(spans)
    return [_trimmed(text, span, content, special) for span, content in zip(spans, contents, strict=True)]


def _trimmed(text: str, span: Span, content: str | None, special: re.Pattern[str]) -> Span:
    """`span` cut behind the special token that ends the turn: what comes after is not the model's to write.

    That token is the first after the turn's content (templates may add the end of the whole text or a line break), or,
    where the content cannot be found, the last that only white space follows. Without such a token the span stays.
    """
    start, end = span
    if content is not None and (last := _find_end(text, span, content, special)) is not None:
        return start, last
    last = _last_special(text, span, special)
    return (start, last) if last is not None and not text[last:end].strip() else span


def _find_end(text: str, span: Span, content: str, special: re.Pattern[str]) -> int | None:
    """Where the first special token after a turn's content ends. An answer `end` is not found inside `<|im_end|>`."""
    content, (start, end) = content.strip(), span
    tokens = [(match.start(), match.end()) for match in special.finditer(text, start, end)]
    place = text.rfind(content, start, end)
    while place >= 0:
        stop = place + len(content)
        if not any(first < place < last or first < stop < last for first, last in tokens):
            return next((last for first, last in tokens if first >= stop), None)
        place = text.rfind(content, start, stop - 1)
    return None


def _last_special(text: str, span: Span, special: re.Pattern[str]) -> int | None:
    """Where the last special token in the span ends."""
    end = None
    for match in special.finditer(text, *span):
        end = match.end()
    return end


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


@functools.lru_cache(maxsize=16)
def _adds_beginning(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]


@functools.lru_cache(maxsize=16)
def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    names = sorted((name for name in special_tokens(tokenizer) if name.strip()), key=len, reverse=True)
    return re.compile("|".join(re.escape(name) for name in names) if names else r"(?!)")


def _shown(text: str, spans: Sequence[Span]) -> str:
    """The text with ⟦ ⟧ around what is supervised, its middle left out when it is long."""
    for start, end in reversed(spans):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
