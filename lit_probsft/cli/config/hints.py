"""What a type hint accepts, in a user's words, and which classes and options it offers."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from lit_probsft.cli.config.scalars import Scalar, load

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "null",
    **dict.fromkeys((list, tuple, set, get_origin(Iterable[Any])), "a list"),
    **dict.fromkeys((dict, get_origin(Mapping[str, Any])), "a mapping"),
}
"""What Python's types are called in a configuration."""

_STANDARD = ("builtins", "pathlib", "datetime", "typing")
"""Modules of types that stand for a plain value."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


class Option(NamedTuple):
    """A parameter of a class."""

    hint: Any
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        """Whether the class cannot be built without it."""
        return self.default is inspect.Parameter.empty


UNKNOWN = Option(Any)


class FlagGroup(dict[str, Option]):
    """The flags of a group such as `trainer` by name, in place of a type hint."""


def alternatives(hint: Any) -> list[Any]:
    """The members of a union, or the hint alone."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for member in get_args(hint) for kind in alternatives(member)]
    return [hint]


def class_families(hint: Any) -> list[type]:
    """Base classes of the objects that `hint` accepts; of a factory, what it returns."""
    import torch  # `--help` describes types without it

    found = []
    for kind in alternatives(hint):
        if get_origin(kind) is get_origin(Callable[..., Any]):
            kind = (Any, *get_args(kind))[-1]  # of a hint without arguments nothing is known
        if not isinstance(kind, type) or kind in _WORDS or get_origin(kind) is not None:
            continue
        if kind.__module__ not in _STANDARD and not issubclass(kind, torch.Tensor | Enum):
            found.append(kind)
    return found


def is_factory(hint: Any) -> bool:
    """Whether `hint` takes a class whose first argument comes later, as an optimizer's parameters."""
    return any(get_origin(kind) is get_origin(Callable[..., Any]) and get_args(kind) for kind in alternatives(hint))


def is_group(hint: Any) -> bool:
    """Whether `hint` is a dataclass, whose fields are given without a class path."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and ABC not in hint.__mro__


def accepts(value: Any, hint: Any) -> bool:
    """Whether a value, as YAML reads it, fits one of the plain types of `hint`; true for types that are not plain."""
    import torch

    objects = [*class_families(hint), torch.Tensor]
    return any(_fits(value, kind) for kind in alternatives(hint) if kind not in objects and not is_factory(kind))


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind) or kind
    if origin is Literal:
        return value in get_args(kind)
    if kind is bool or kind is NoneType or kind is str:
        return isinstance(value, kind)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and is_usable(value)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return (number and is_usable(value)) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None)
    if _WORDS.get(origin) == "a list":
        return isinstance(value, list) and len(value) == (_length(kind) or len(value))
    return isinstance(value, Mapping) if _WORDS.get(origin) == "a mapping" else True


def is_usable(value: Any) -> bool:
    """False for a number that libraries cannot compute with: NaN, infinite, or whole and of more than 64 bits."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return not isinstance(value, float) or math.isfinite(value)


def _length(kind: Any) -> int | None:
    """How many items a tuple has; None for any number."""
    items = get_args(kind) if get_origin(kind) is tuple else ()
    return None if not items or Ellipsis in items else len(items)


def choices(hint: Any) -> list[str]:
    """The values of all literals of `hint`."""
    return [str(value) for kind in alternatives(hint) if get_origin(kind) is Literal for value in get_args(kind)]


def typed(scalar: Scalar, hint: Any) -> Any:
    """The value of a scalar for an option: what YAML reads, or the text as it is written if the option takes texts.

    `null` is null where the option takes both; in quotes in a file, it is the text.
    """
    import torch

    kinds = alternatives(hint)
    known = [kind for kind in kinds if kind in _WORDS or (get_origin(kind) or kind) in (*_WORDS, Literal)]
    if not isinstance(scalar.value, str) and any(_fits(scalar.value, kind) for kind in known):
        return scalar.value
    if scalar.value is None or any(_is_unchecked(kind) for kind in kinds):
        return scalar.value
    others = [kind for kind in kinds if kind not in known and not class_families(kind) and kind is not torch.Tensor]
    if str in kinds or others or any(get_origin(kind) is Literal and _fits(scalar.text, kind) for kind in known):
        return scalar.text
    value = _read_again(scalar.value) if isinstance(scalar.value, str) else scalar.value
    return value if any(_fits(value, kind) for kind in known) else scalar.value


def _is_unchecked(kind: Any) -> bool:
    """Whether nothing is known of what `kind` accepts."""
    return kind in (Any, object) or not (isinstance(kind, type) or get_origin(kind) is not None)


def _read_again(text: str) -> Any:
    """What YAML reads in a text in quotes: "3" is a whole number to an option that takes no texts."""
    try:
        return load(text) if text.strip() else text
    except (yaml.YAMLError, ValueError):
        return text


def item_hint(hint: Any, position: int | None = None) -> Any:
    """The type of the items of the list that `hint` takes, or without a position of the mapping; Any if unknown."""
    word = "a mapping" if position is None else "a list"
    kinds = []
    for kind in alternatives(hint):
        items = get_args(kind)
        if items and _WORDS.get(get_origin(kind)) == word:
            kinds.append(items[-1] if position is None else items[min(position, (_length(kind) or 1) - 1)])
    return Union[tuple(kinds)] if kinds else Any  # noqa: UP007  of a number that is not known here


def takes(hint: Any, word: str) -> bool:
    """Whether `hint` takes what `word` describes, such as `a list`."""
    return any(_WORDS.get(get_origin(kind) or kind) == word for kind in alternatives(hint))


def described(hint: Any) -> str:
    """The plain types of `hint` in words, such as `a number or null`; empty for classes alone."""
    words: list[str] = []
    for kind in alternatives(hint):
        if get_origin(kind) is Literal:
            words.append(("one of " if not words else "") + ", ".join(str(value) for value in get_args(kind)))
        elif (word := _WORDS.get(get_origin(kind) or kind)) is not None:
            words += [f"a list of {length}"] if (length := _length(kind)) else word.split(" or ")
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    *others, last = sorted(dict.fromkeys(words), key=lambda word: word == "null") or [""]
    return f"{', '.join(others)} or {last}" if others else last


def members(base: type) -> set[type]:
    """`base` and all classes derived from it that can be used."""
    abstract = ABC in base.__bases__ or base.__name__.startswith("_") or base.__name__ in ("Optimizer", "Logger")
    found: set[type] = set() if abstract else {base}
    member: type
    for member in base.__subclasses__():
        found |= members(member)
    return found


def known_options(owner: Any) -> dict[str, Option]:
    """The parameters of a class, with those that it passes on to its base classes, as far as they are known."""
    found: dict[str, Option] = {}
    for kind in owner.__mro__ if isinstance(owner, type) else (owner,):
        try:
            parameters = inspect.signature(kind).parameters.values()
        except (TypeError, ValueError):
            break
        own = _options(kind)
        found = {**own, **found}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def fields_of(hint: Any) -> dict[str, Option] | None:
    """The options of a group, whose values are given without a class; None for any other hint."""
    if isinstance(hint, FlagGroup):
        return hint
    return known_options(hint) if is_group(hint) else None


def options_of(owner: Any) -> dict[str, Option] | None:
    """The parameters of a class by name; None if it passes on others (`**kwargs`) or has no signature."""
    try:
        parameters = inspect.signature(owner).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return _options(owner)


def _options(owner: Any) -> dict[str, Option]:
    try:
        hints = get_type_hints(owner if dataclasses.is_dataclass(owner) else owner.__init__)
    except Exception:  # a hint that names what is imported for the type checker only
        hints = {}
    return {
        name: Option(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(owner).parameters.items()
        if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    }
