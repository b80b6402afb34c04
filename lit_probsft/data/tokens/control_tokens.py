"""Control tokens inside the texts of a conversation, written as ordinary text.

A template writes control tokens such as `<|im_end|>` around the turns. The same characters inside a content would get
the same ids: an answer would end in the middle, and a user's text could open a turn. So each is quoted in two steps:

1. Before rendering, a rare character that occurs nowhere else takes its place. Neither the template nor the
   search for turns can mistake it for a control token.
2. Encoding puts the text back, and encodes it with a copy of the tokenizer that reads control tokens as ordinary text
   and knows those of the template under other names.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_probsft.errors import UserError

SpecialTokensInText = Literal["text", "refuse", "keep"]
"""Control tokens inside a text are written as ordinary text, refused, or kept as control tokens."""

Quoted = Mapping[str, str]
"""The texts that are quoted, by the character that stands for each."""

_REASONING_TAGS = ("<think>", "</think>")
_STAND_INS = [chr(code) for code in range(0x13000, 0x13400)]
"""Egyptian hieroglyphs: hardly any text has them, and JSON, `repr`, trimming and `upper` leave them as they are."""
_MARKS = [chr(code) for code in range(0xE000, 0xF900)]
"""Private-use characters, which are not part of words: a token may be defined to match whole words only."""


def find_control_token(tokenizer: Any, messages: Sequence[Mapping[str, Any]], others: Any = None) -> str | None:
    """Describe the first control token in the texts of a conversation, such as `'</s>' in turn 1 (user)`.

    Args:
        tokenizer: a fast tokenizer.
        messages: of the conversation.
        others: further texts, or plain data that contains texts, such as its tools.

    Special tokens of the tokenizer are control tokens. Added tokens that are not special (`<tool_call>`) are none, nor
    are the `<think>` and `</think>` of the assistant.
    """
    for index, message in enumerate(messages):
        pattern = _control_pattern(tokenizer, message["role"] == "assistant")
        for key, value in message.items():
            if key == "role":
                continue
            for text in (value,) if isinstance(value, str) else _texts(value):
                if found := pattern.search(text):
                    return f"{found[0]!r} in turn {index} ({message['role']})"
    for text in _texts(others):
        if found := _control_pattern(tokenizer, False).search(text):
            return repr(found[0])
    return None


def quote_control_tokens(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None, Quoted]:
    """Replace control tokens in the texts of a conversation by rare characters.

    Returns:
        The messages, the tools, and what each character stands for; unchanged and empty without control tokens.
    """
    if find_control_token(tokenizer, messages, tools) is None:
        return messages, tools, {}
    written = json.dumps([messages, tools], ensure_ascii=False, default=str)
    unused = (character for character in _STAND_INS if character not in written)
    characters: dict[str, str] = {}

    def quote(match: re.Match[str]) -> str:
        if match[0] not in characters:
            characters[match[0]] = next(unused)
        return characters[match[0]]

    quoted_messages = []
    for message in messages:
        pattern = _control_pattern(tokenizer, message["role"] == "assistant")
        quoted_messages.append(
            {key: value if key == "role" else _replace(value, pattern, quote) for key, value in message.items()}
        )
    quoted_tools = _replace(tools, _control_pattern(tokenizer, False), quote)
    return quoted_messages, quoted_tools, {character: text for text, character in characters.items()}


def restore(text: str, quoted: Quoted) -> str:
    """Put the quoted texts back."""
    for character, original in quoted.items():
        text = text.replace(character, original)
    return text


@contextlib.contextmanager
def errors_restored(quoted: Quoted) -> Iterator[None]:
    """Raise a `UserError` from this block with the quoted texts in its message."""
    try:
        yield
    except UserError as error:
        if not quoted:
            raise
        escaped = {name.encode("unicode_escape").decode(): text for name, text in quoted.items()}  # as `repr` shows it
        raise UserError(error.argument, restore(error.problem, {**quoted, **escaped})) from error


def unused_character(text: str) -> str:
    """Return a character for new names that is not in the text; nearly always the same."""
    return next(character for character in _MARKS if character not in text)


@dataclass(frozen=True)
class QuotingTokenizer:
    """Encodes control tokens as ordinary text, except those under their new names.

    Attributes:
        tokenizer: a copy of the original, which splits special tokens and knows each control token by its new name.
        names: the new names of the control tokens.
        ids: the original ids, by the ids of the new names.
        control_ids: the control tokens, by their original ids.
    """

    tokenizer: Any
    names: Mapping[str, str]
    ids: Mapping[int, int]
    control_ids: Mapping[int, str]

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return any_of(self.names)

    def rename(self, text: str, quoted: Quoted) -> str:
        """Give the control tokens of a text their new names, and put the quoted texts back."""
        return restore(self._pattern.sub(lambda match: self.names[match[0]], text), quoted)

    def original_ids(self, ids: Sequence[int]) -> list[int]:
        """Return the original tokenizer's ids.

        Raises:
            UserError: ordinary text was encoded as a control token, as a vocabulary of whole words may do.
        """
        if found := next((self.control_ids[token] for token in ids if token in self.control_ids), None):
            raise UserError(
                "special_tokens_in_text",
                f"this tokenizer cannot write {found!r} as ordinary text; `refuse` leaves such rows out with "
                "`data.on_bad_row: skip`, and `keep` keeps the control token",
            )
        return [self.ids.get(token, token) for token in ids]


@functools.lru_cache(maxsize=4)
def quoting_tokenizer(tokenizer: Any, mark: str) -> QuotingTokenizer:
    """Return a tokenizer for texts with quoted control tokens.

    Args:
        tokenizer: a fast tokenizer; it is not changed.
        mark: a character that is not in the texts, for the new names.
    """
    from tokenizers import AddedToken

    tokens = {token.content: (id, token) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    names = {text: f"{mark}{id}{mark}" for text, (id, _) in tokens.items()}
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens(
        [  # not special, because special ones are split
            AddedToken(
                names[text],
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=False,
                special=False,
            )
            for text, (_, token) in tokens.items()
        ]
    )
    extended.split_special_tokens = True
    ids = {int(extended.convert_tokens_to_ids(names[text])): id for text, (id, _) in tokens.items()}
    return QuotingTokenizer(extended, names, ids, {id: text for text, (id, _) in tokens.items()})


@functools.lru_cache(maxsize=16)
def _control_pattern(tokenizer: Any, is_assistant: bool) -> re.Pattern[str]:
    """A pattern that matches the control tokens to quote in the texts of the assistant, or of anyone else."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if is_assistant:
        names -= set(_REASONING_TAGS)
    return any_of(name for name in names if name.strip())


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of these texts, the longest first.

    Texts with the same beginning are one branch: there can be hundreds, and `<` is frequent in code.
    """
    branches: dict[str, list[str]] = {}
    for name in sorted(names, key=len, reverse=True):
        branches.setdefault(name[:2], []).append(re.escape(name[2:]))
    joined = "|".join(f"{re.escape(head)}(?:{'|'.join(rests)})" for head, rests in branches.items())
    return re.compile(joined or r"(?!)")


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain data, keys of mappings included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _replace(value: Any, pattern: re.Pattern[str], replacement: Any) -> Any:
    """Plain data with every match in its texts replaced."""
    if isinstance(value, str):
        return pattern.sub(replacement, value)
    if isinstance(value, Mapping):
        return {
            _replace(key, pattern, replacement): _replace(item, pattern, replacement) for key, item in value.items()
        }
    if isinstance(value, Sequence):
        return [_replace(item, pattern, replacement) for item in value]
    return value
