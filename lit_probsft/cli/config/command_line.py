"""Splits a command line into flags with their values."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from lit_probsft.errors import UserError

_FLAG = re.compile(r"--[A-Za-z_][\w.-]*\+?(=.*)?|-c", re.DOTALL)


class Flag(NamedTuple):
    """A flag as it was typed.

    Attributes:
        typed: the flag, such as `--data.batch_size`.
        name: without dashes and without `init_args` and `class_path`.
        value: its text; None if there is none.
    """

    typed: str
    name: str
    value: str | None


def option_name(name: str) -> str:
    """The name of an option without the words of a class, which may be left out: `objective.init_args.alpha`."""
    return re.sub(r"\.init_args(?=\.|$)", "", name).removesuffix(".class_path")


def split_flags(words: Sequence[str], switches: Container[str]) -> list[Flag]:
    """The flags in the order in which they take effect.

    That is the order in which they were typed, except that `--model.optimizer SGD` always comes before
    `--model.optimizer.lr 0.1`.

    Args:
        words: the command line without the command.
        switches: names of the flags that take no value.

    Raises:
        UserError: a word that belongs to no flag.
    """
    flags = list(_flags(words, switches))
    first = {flag.name: place for place, flag in reversed([*enumerate(flags)])}

    def order(place: int) -> tuple[int, int, int]:
        parts = flags[place].name.split(".")
        owners = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        return max([place, *(first[owner] for owner in owners if owner in first)]), len(parts), place

    return [flags[place] for place in sorted(range(len(flags)), key=order)]


def _flags(words: Sequence[str], switches: Container[str]) -> Iterator[Flag]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not _FLAG.fullmatch(word):
            raise UserError("", f"unexpected argument {word!r}; flags start with --")
        typed, equals, value = word.partition("=")
        option = "config" if typed == "-c" else option_name(typed.removeprefix("--"))
        if equals:
            yield Flag(typed, option, value)
        elif option in switches or not rest or _FLAG.fullmatch(rest[0]):
            yield Flag(typed, option, None)
        else:
            yield Flag(typed, option, rest.pop(0))
