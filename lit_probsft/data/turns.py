"""A conversation as text, and where in it the assistant's turns are.

Turns are found by the chat template's own `{% generation %}` marks, or else by rendering the conversation up to each.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_probsft.data.tokenizers import special_tokens
from lit_probsft.errors import UserError, near_matches

Span = tuple[int, int]
"""First character and the one after the last."""

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SHOWN = 600  # characters of a text in an error


def read_template(chat_template: str | None) -> str | None:
    """The text of a template that is given as text, or as the path of a file.

    Raises:
        UserError: it is neither.
    """
    if chat_template is None or "{%" in chat_template or "{{" in chat_template:
        return chat_template
    path = Path(chat_template).expanduser()
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"data.chat_template: expected a template file or Jinja text, got {chat_template!r}, which is neither."
            f"{near_matches(path.name, names)}"
        )
    return path.read_text(encoding="utf-8")


def find_turns(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    chat_template: str | None = None,
    plain_text: bool = False,
    generation_prompt: bool = False,
) -> tuple[str, list[Span]]:
    """The text of a conversation and, ascending, where the assistant's turns are in it.

    A turn goes up to and with the special token that ends it, as far as there is one.

    Args:
        tokenizer: whose template and special tokens are used.
        messages: `{"role", "content"}`.
        chat_template: Jinja text in place of the tokenizer's.
        plain_text: no template, see `tokenize_conversation`.
        generation_prompt: the text asks for an answer at its end.

    Raises:
        UserError: there is no template, it is broken, it refuses the roles, or the turns cannot be found.
    """
    if plain_text:
        return _render_plain(tokenizer, messages)
    text, spans = _render(tokenizer, messages, _template(tokenizer, chat_template), generation_prompt)
    contents: list[str | None] = [message["content"] for message in messages if message["role"] == "assistant"]
    if len(contents) != len(spans):  # marks may leave turns out, or mark one twice
        contents = [None] * len(spans)
    special = _special_pattern(tokenizer)
    trimmed = [_trimmed(text, span, content, special) for span, content in zip(spans, contents, strict=True)]
    return text, [span for span in trimmed if span[0] < span[1]]


def ends_with_special(tokenizer: Any, text: str, span: Span) -> bool:
    """Whether a special token ends exactly where the span ends."""
    return _last_special(text, span, _special_pattern(tokenizer)) == span[1]


def shown(text: str, spans: Sequence[Span]) -> str:
    """The text with ⟦ ⟧ around what is supervised, its middle left out when it is long."""
    for start, end in reversed(spans):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"


def _render(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], template: str, generation_prompt: bool
) -> tuple[str, list[Span]]:
    """The text by a template, and the turns of the assistant with whatever follows them up to the next turn."""
    text, marks = _apply(tokenizer, template, messages, generation_prompt)
    if _GENERATION_MARK.search(template):
        if not generation_prompt and not marks:
            raise UserError(f"chat_template: its generation marks cover nothing of:\n{shown(text, [])}")
        return text, marks
    special, spans = _special_pattern(tokenizer), []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, _ = _apply(tokenizer, template, messages[:index], True)
        whole = index == len(messages) - 1 and not generation_prompt
        upto = text if whole else _apply(tokenizer, template, messages[: index + 1], False)[0]
        # Some templates add the end of the text behind the last turn only, so the two may part after this turn's end.
        span = len(before), len(os.path.commonprefix([upto, text]))  # noqa: RUF071 (by character)
        ended = _find_end(text, span, message["content"], special) is not None
        if not (upto.startswith(before) and text.startswith(before) and (ended or text.startswith(upto))):
            raise UserError(
                "chat_template: it renders earlier turns differently once later ones follow, so the assistant's turn "
                f"{index} cannot be found; mark it with {{% generation %}} in a template of your own.\n"
                f"Up to the turn: {shown(before, [])}\nWith the turn: {shown(upto, [])}\n"
                f"The whole: {shown(text, [])}"
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


@functools.lru_cache(maxsize=16)
def _adds_beginning(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]


@functools.lru_cache(maxsize=16)
def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    names = sorted((name for name in special_tokens(tokenizer) if name.strip()), key=len, reverse=True)
    return re.compile("|".join(re.escape(name) for name in names) if names else r"(?!)")
