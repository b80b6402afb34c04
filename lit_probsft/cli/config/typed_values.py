"""Reads the text of a flag, and each scalar of a composed configuration, as its option wants it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any

import yaml

from lit_probsft.cli.config.hints import (
    UNKNOWN,
    FlagGroup,
    Option,
    accepts,
    alternatives,
    class_families,
    fields_of,
    is_usable,
    item_hint,
    known_options,
    takes,
    typed,
)
from lit_probsft.cli.config.implied import ClassSpec
from lit_probsft.cli.config.scalars import Scalar, plain, read


@dataclasses.dataclass(frozen=True)
class NoValue:
    """In place of the value of a flag that was typed without one."""

    flag: str


def flag_value(text: str, hint: Any) -> Any:
    """The text of a flag as a tree, for an option of type `hint`.

    To an option that takes only texts, it is one, as it was typed; `null` is none where the option takes that too.
    """
    kinds = [] if isinstance(hint, FlagGroup) else alternatives(hint)
    if kinds and set(kinds) <= {str, NoneType}:
        return Scalar(text, None if text == "null" and NoneType in kinds else text)
    try:
        tree = read(text) if text.strip() else Scalar(text, text)
    except yaml.YAMLError:
        return Scalar(text, text)
    if isinstance(tree, Scalar):
        nulls = ("null",) if str in kinds else ("null", "Null", "NULL", "~")
        return Scalar(text, text if tree.value is None and text.strip() not in nulls else tree.value)
    if str not in kinds:
        return tree
    mapping = isinstance(tree, dict) and text.lstrip().startswith("{")
    nested = (mapping and (takes(hint, "a mapping") or class_families(hint))) or (
        isinstance(tree, list) and takes(hint, "a list")
    )
    return tree if nested else Scalar(text, text)


class ValueReader:
    """Reads each scalar of a tree as its option wants it."""

    def __init__(self) -> None:
        self.wrong = False
        """Whether there is something that the parser ignores: a flag without a value, null where an option cannot be
        null, another value than true or false for a switch, a number that is not usable, or no mapping for a group."""

    def read(self, tree: Any, option: Option) -> Any:
        """The values of a tree."""
        hint, fields = option.hint, fields_of(option.hint)
        if isinstance(tree, ClassSpec):
            arguments = self._fields(tree.all_arguments, known_options(tree.kind))
            if tree.name is None:
                return arguments
            parts = {"init_args": arguments, "dict_kwargs": plain(tree.others)}
            return {"class_path": tree.name, **{name: part for name, part in parts.items() if part}}
        if isinstance(tree, Scalar):
            value = tree.value if isinstance(hint, FlagGroup) else typed(tree, hint)
            ignored = value is None or hint is bool or not is_usable(value)
            self.wrong |= fields is not None or (ignored and not accepts(value, hint))
            return value
        if isinstance(tree, list):
            self.wrong |= fields is not None or hint is bool
            return [self.read(item, Option(item_hint(hint, index))) for index, item in enumerate(tree)]
        if isinstance(tree, dict):
            self.wrong |= hint is bool
            if fields is not None:
                return self._fields(tree, fields)
            return {key: self.read(value, Option(item_hint(hint))) for key, value in tree.items()}
        self.wrong |= isinstance(tree, NoValue)
        return tree

    def _fields(self, tree: dict[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
        return {name: self.read(value, known.get(name, UNKNOWN)) for name, value in tree.items()}
