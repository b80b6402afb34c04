"""Finds `--help` among the words of a command and prints the page that it asks for."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from lit_probsft.errors import UserError, first_rank


def topic_of(words: Sequence[str]) -> str | None:
    """What `--help` asks for: a name, an empty text for the overview, or None if there is no `--help`.

    Raises:
        UserError: jsonargparse's form, `--model.lora.help`, is used.
    """
    for index, word in enumerate(words):
        if match := re.fullmatch(r"--([\w.]+)\.help(=.*)?", word):
            raise UserError(word.partition("=")[0], f"unknown flag; use --help {match[1]}")
        flag, equals, value = word.partition("=")
        if flag in ("-h", "--help"):
            following = words[index + 1] if index + 1 < len(words) else ""
            return value if equals else following if not following.startswith("-") else ""
    return None


def print_help(topic: str, command: str, summary: str) -> None:
    """Print the overview of a command, or the page of a name.

    Raises:
        UserError: nothing has this name.
    """
    from lit_probsft.cli.help.pages import overview, page

    text = page(topic, command) if topic else overview(command, summary)
    if not first_rank():
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `head` or a pager has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
