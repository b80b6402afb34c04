"""Renders a conversation as text with a chat template, and finds special tokens in that text."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_probsft.data.tokens.call_forms import in_call_form
from lit_probsft.data.tokens.control_tokens import any_of
from lit_probsft.data.tokens.time_limit import TimeLimitError, time_limit
from lit_probsft.data.tokens.tokenizers import special_tokens
from lit_probsft.errors import UserError, near_matches

Span = tuple[int, int]
"""First character and the one after the last."""

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
MAX_SECONDS = 10.0
"""Time for a template to render one conversation."""

MAX_LENGTH = 2**28
"""Characters that a template may write for one conversation."""

_SHOWN = 600  # characters of a text in an error


def read_template(chat_template: str | None) -> str | None:
    """Return the Jinja text of a template given as text or as the path of a file.

    Raises:
        UserError: it is neither, or not valid Jinja.
    """
    if chat_template is None:
        return None
    template = chat_template if "{%" in chat_template or "{{" in chat_template else _read_file(chat_template)
    import jinja2

    try:
        _render_alone(template, [])
    except UserError as error:
        raise error.within("data") from error
    except jinja2.TemplateSyntaxError as error:
        raise _invalid_jinja(error).within("data") from error
    except Exception:  # it compiles; whether it renders depends on the messages of a row
        pass
    return template


def _read_file(chat_template: str) -> str:
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
        raise UserError("data.chat_template", f"expected UTF-8 text, {chat_template!r} is not: {error}") from error


def chosen_template(tokenizer: Any, chat_template: str | None) -> str:
    """Return `chat_template`, or the tokenizer's own if it is None.

    Raises:
        UserError: the tokenizer has none either.
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
    """Renders messages with a template.

    Attributes:
        tokenizer: provides the special tokens that the template may name.
        template: Jinja text.
        tools: JSON schemas of the conversation's tools.
        options: further names that the template may read, such as `enable_thinking`.
    """

    tokenizer: Any
    template: str
    tools: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, **options: Any) -> Renderer:
        """Return a renderer with more options for the template."""
        return replace(self, options={**self.options, **options})

    @property
    def has_generation_marks(self) -> bool:
        """Whether the template marks what the assistant generates with `{% generation %}`."""
        return bool(_GENERATION_MARK.search(self.template))

    def __call__(self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool = False) -> str:
        """Return the text, with the prompt for an answer at its end if `generation_prompt`.

        Raises:
            UserError: the template is broken, or refuses these messages.
        """
        return self._render(messages, generation_prompt, False)[0]

    def with_marks(
        self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """Return the text, and the spans that the template marks as generated.

        Raises:
            UserError: the template is broken, or refuses these messages.
        """
        return self._render(messages, generation_prompt, True)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], generation_prompt: bool, with_marks: bool
    ) -> tuple[str, list[Span]]:
        def unmarked(changed: list[dict[str, Any]]) -> str:
            return self._render_unchanged(changed, generation_prompt, False)[0]

        conversation = [_as_read(self.template, message) for message in messages]
        conversation = in_call_form(self.template, conversation, unmarked)
        return self._render_unchanged(conversation, generation_prompt, with_marks)

    def _render_unchanged(
        self, messages: list[dict[str, Any]], generation_prompt: bool, with_marks: bool
    ) -> tuple[str, list[Span]]:
        import jinja2

        try:
            text, marks = _render_jinja(
                messages,
                tools=None if self.tools is None else [dict(tool) for tool in self.tools],
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=with_marks,
                **{**self.tokenizer.special_tokens_map, **self.options},
            )
            text.encode()
        except UserError:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise _invalid_jinja(error) from error
        except UnicodeEncodeError as error:
            raise UserError(
                "chat_template", f"the template renders half of a surrogate pair, which is not Unicode text: {error}"
            ) from error
        except Exception as error:  # a template is a program, and may raise anything
            roles = ", ".join(message["role"] for message in messages)
            raise UserError("chat_template", f"the template refuses the roles {roles}: {error}") from error
        return text, marks


def _render_jinja(messages: list[dict[str, Any]], **options: Any) -> tuple[str, list[Span]]:
    """Render a template, which is a program, and stop it if it does not end or writes without end."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        with time_limit(MAX_SECONDS):
            texts, marks = render_jinja_template([messages], **options)
    except TimeLimitError:
        raise UserError("chat_template", f"the template did not end within {MAX_SECONDS:g} s") from None
    except MemoryError:
        raise UserError("chat_template", "the template writes more text than fits into memory") from None
    if len(texts[0]) > MAX_LENGTH:
        raise UserError(
            "chat_template",
            f"expected a text of at most {MAX_LENGTH:,} characters, the template writes {len(texts[0]):,}",
        )
    return texts[0], [(start, end) for start, end in marks[0]] if marks else []


def _as_read(template: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message in the form that the template reads."""
    read = {key: value for key, value in message.items() if key != "train"}
    if read["role"] == "assistant" and "</think>" in read["content"] and _writes_block_twice(template):
        before, _, answer = read["content"].rpartition("</think>")
        read |= {"reasoning_content": before.partition("<think>")[2].strip(), "content": answer.lstrip()}
    if "reasoning_content" in read:
        read[_reasoning_key(template)] = read.pop("reasoning_content")
    if _reads_parts(template):
        read["content"] = [{"type": "text", "text": read["content"]}]
    return read


def unread_keys(template: str, messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of messages that are unknown here and that the template does not read.

    Args:
        template: Jinja text; empty without a template.
        messages: as `validate_conversation` returns them.
    """
    known = {"role", "content", "tool_calls", "reasoning_content", "tool_call_id", "train"}
    further = dict.fromkeys(
        key
        for message in messages
        for key in message
        if key not in known and not (key == "name" and message["role"] == "tool")
    )
    return [key for key in further if not _reads_key(template, key)]


@functools.lru_cache(maxsize=1024)
def _reads_key(template: str, key: str) -> bool:
    """Whether the template has `.key`, `'key'` or `"key"`."""
    return re.search(rf"\.\s*{re.escape(key)}\b|(['\"]){re.escape(key)}\1", template) is not None


@functools.lru_cache(maxsize=16)
def _reasoning_key(template: str) -> str:
    """The name by which a template reads the reasoning of a turn. Later versions of transformers give it all names."""
    keys = ("reasoning_content", "thinking", "reasoning")
    return next((key for key in keys if _reads_key(template, key)), keys[0])


@functools.lru_cache(maxsize=16)
def _writes_block_twice(template: str) -> bool:
    """Whether a template puts an empty block of reasoning before one in the content, since it reads the former only."""
    answer = {"role": "assistant", "content": "<think>\nxqz\n</think>\n\nprobe"}
    try:
        text = _render_alone(template, [{"role": "user", "content": "xqz"}, answer])
    except UserError:
        raise
    except Exception:  # a template is a program, and may raise anything
        return False
    return "reasoning_content" in template and text.count("</think>") > 1


def _render_alone(template: str, messages: list[dict[str, Any]]) -> str:
    return _render_jinja(messages, chat_template=template)[0]


@functools.lru_cache(maxsize=16)
def _reads_parts(template: str) -> bool:
    """Whether a template reads contents as lists of parts only, as those of models that see images may."""

    def reads(content: Any) -> bool:
        try:
            text = _render_alone(template, [{"role": role, "content": content} for role in ("user", "assistant")])
        except UserError:
            raise
        except Exception:  # a template is a program, and may raise anything
            return False
        return "xqzprobe" in text

    return not reads("xqzprobe") and reads([{"type": "text", "text": "xqzprobe"}])


def _invalid_jinja(error: Any) -> UserError:
    return UserError("chat_template", f"not valid Jinja, line {error.lineno}: {error.message}")


def plain_template(tokenizer: Any) -> str:
    """Return a template that renders what `format: plain` trains on, for those who use the model later."""
    begin = "{{ bos_token }}" if adds_bos(tokenizer) else ""
    return begin + (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}"
        "{% endfor %}"
    )


def highlight(text: str, spans: Sequence[Span]) -> str:
    """Return the text with ⟦ ⟧ around the spans, without its middle if it is long."""
    for start, end in reversed(spans):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"


@functools.lru_cache(maxsize=16)
def adds_bos(tokenizer: Any) -> bool:
    """Whether this tokenizer puts its beginning-of-text token before a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]


@functools.lru_cache(maxsize=16)
def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern that matches the text of any special token."""
    return any_of(name for name in special_tokens(tokenizer) if name.strip())
