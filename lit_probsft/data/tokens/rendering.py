"""A conversation as text: what a chat template makes of it, and which special tokens are in it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_probsft.data.tokens.tokenizers import special_tokens
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
            "data.chat_template",
            f"expected a template file or Jinja text, got {chat_template!r}, which is neither."
            f"{near_matches(path.name, names)}",
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            "data.chat_template", f"expected a text file in UTF-8, {chat_template!r} is not: {error}"
        ) from error


def check_template(tokenizer: Any, chat_template: str | None) -> None:
    """Refuse a template that no row could be rendered with.

    Raises:
        UserError: there is none, or it is not valid Jinja.
    """
    import jinja2
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = chosen_template(tokenizer, chat_template)
    try:
        _compile_jinja_template(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError("chat_template", f"not valid Jinja, line {error.lineno}: {error.message}") from error


def chosen_template(tokenizer: Any, chat_template: str | None) -> str:
    """`chat_template`, or else the tokenizer's own.

    Raises:
        UserError: there is neither.
    """
    if chat_template is not None:
        return chat_template
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            "chat_template",
            "the tokenizer has no chat template; give one (a file or Jinja text), or set `format: plain`",
        ) from error
    return template


@dataclass(frozen=True)
class Renderer:
    """A template with what it is given beside the messages.

    Attributes:
        tokenizer: whose special tokens the template may name.
        template: Jinja text.
        tools: of the conversation.
    """

    tokenizer: Any
    template: str
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def marks_turns(self) -> bool:
        """Whether the template says itself what the assistant generates."""
        return bool(_GENERATION_MARK.search(self.template))

    def __call__(self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool = False) -> str:
        """The text; with `generation_prompt` it asks for an answer at its end.

        Raises:
            UserError: the template is broken, or refuses these messages.
        """
        return self._render(messages, generation_prompt, False)[0]

    def marked(self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """The text, and the spans that the template marks itself.

        Raises:
            UserError: the template is broken, or refuses these messages.
        """
        return self._render(messages, generation_prompt, True)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool, marked: bool
    ) -> tuple[str, list[Span]]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        bare = [{key: value for key, value in message.items() if key != "train"} for message in messages]
        try:
            rendered, marks = render_jinja_template(
                [bare],
                tools=None if self.tools is None else [dict(tool) for tool in self.tools],
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=marked,
                **self.tokenizer.special_tokens_map,
            )
            rendered[0].encode()
        except jinja2.TemplateSyntaxError as error:
            raise UserError("chat_template", f"not valid Jinja, line {error.lineno}: {error.message}") from error
        except UnicodeEncodeError as error:
            raise UserError(
                "chat_template", f"expected Unicode text, it gives half of a surrogate pair: {error}"
            ) from error
        except Exception as error:  # a template is a program, and may fail in any way
            roles = ", ".join(message["role"] for message in messages)
            raise UserError("chat_template", f"it refuses the roles {roles}: {error}") from error
        return rendered[0], [(start, end) for start, end in marks[0]] if marks else []


def plain_template(tokenizer: Any) -> str:
    """A template that writes what `format: plain` trains on, for whoever talks to the model afterwards."""
    begin = "{{ bos_token }}" if adds_beginning(tokenizer) else ""
    return begin + (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}"
        "{% endfor %}"
    )


def shown(text: str, spans: Sequence[Span]) -> str:
    """The text with ⟦ ⟧ around what is supervised, its middle left out when it is long."""
    for start, end in reversed(spans):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"


@functools.lru_cache(maxsize=16)
def adds_beginning(tokenizer: Any) -> bool:
    """Whether this tokenizer puts its beginning-of-text token before a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]


@functools.lru_cache(maxsize=16)
def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches every special token's text."""
    names = sorted((name for name in special_tokens(tokenizer) if name.strip()), key=len, reverse=True)
    return re.compile("|".join(re.escape(name) for name in names) if names else r"(?!)")
