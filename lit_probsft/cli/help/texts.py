"""Sentences of docstrings, in the plain form that a terminal shows."""

from __future__ import annotations

import re

_END_OF_SENTENCE = re.compile(r"(?<!e\.g)(?<!i\.e)[.:](?=\s+[A-Z`0-9(]|\s*$)")
_DEFAULT = re.compile(r"\s*\([Dd]efault: ?.*?\)+(?=[.\s]|$)|\s*(Defaults? ?(to|:)|Disabled by default) ?.*?\.(?=\s|$)")


def first_sentence(text: str) -> str:
    """The first sentence of a text, without its period."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return _END_OF_SENTENCE.split(paragraph, maxsplit=1)[0].strip()


def from_library(text: str) -> str:
    """The first sentence of another library's text, without its markup and without the default."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text.replace("``", "`").replace("`_", "`"))
    sentence = first_sentence(_DEFAULT.sub("", text))
    return sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence


def in_yaml(text: str) -> str:
    """A text with Python's None, True and False as a configuration writes them."""
    return re.sub(r"\b(None|True|False)\b", lambda match: {"None": "null"}.get(match[0], match[0].lower()), text)
