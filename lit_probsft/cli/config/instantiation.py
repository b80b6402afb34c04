"""Builds the classes of a configuration, so that a constructor's error names its place in the configuration.

Before the parser builds anything, each nested class is marked with its place (`data.train`, `model.objective.base`).
The mark is an extra keyword argument, `_PLACE`, which `Builder` removes before it calls the class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace

from lit_probsft.errors import UserError, first_line

_PLACE = "__place__"


class Builder:
    """Turns what a constructor raises into a `UserError` that names the place in the configuration.

    jsonargparse tries each type of a union in turn and merges their errors into one text, so `refused` keeps the
    errors themselves.
    """

    def __init__(self) -> None:
        self.refused: list[UserError] = []

    def around(self, instantiator: Callable[..., Any]) -> Callable[..., Any]:
        """An instantiator for jsonargparse that calls this one."""

        @functools.wraps(instantiator)  # jsonargparse reads the signature
        def build(class_type: type, *args: Any, **arguments: Any) -> Any:
            place = arguments.pop(_PLACE, "")
            try:
                return instantiator(class_type, *args, **arguments)
            except UserError as error:
                self.refused.append(_placed(error, class_type, place))
                raise self.refused[-1] from error
            except Exception as error:  # whatever the constructor of a user's or a library's class raises
                if not place:
                    raise
                missing = isinstance(error, ImportError)
                why = "needs a package that is not installed" if missing else "refuses its arguments"
                self.refused.append(UserError(place, f"{class_type.__name__} {why}: {first_line(error)}"))
                raise self.refused[-1] from error

        return build


def call(class_type: type, *args: Any, **arguments: Any) -> Any:
    """The default instantiator."""
    return class_type(*args, **arguments)


def _placed(error: UserError, class_type: type, place: str) -> UserError:
    """`error` with its place in front, unless it already names one."""
    name, _, field = error.argument.partition(".")
    if not place or name in ("model", "data", "trainer"):
        return error
    if name in {base.__name__ for base in class_type.__mro__}:  # objectives put their class's name first
        return UserError(field, error.problem).within(place)
    return error.within(place)


def with_places(config: Namespace) -> Namespace:
    """A copy of a configuration in which every class below `model`, `data` and `trainer` is marked with its place."""
    copy = config.clone()
    command = copy.get("subcommand")
    for name, value in vars(copy[command] if command else copy).items():
        # `model` and `data` themselves are not marked: they name their options in full
        _mark(value.get("init_args", value) if isinstance(value, Namespace) else value, name)
    return copy


def _mark(value: Any, place: str) -> None:
    if isinstance(value, list):
        for index, item in enumerate(value):
            _mark_class(item, f"{place}[{index}]")
    elif isinstance(value, Namespace | dict):
        for name, item in (vars(value) if isinstance(value, Namespace) else value).items():
            _mark_class(item, f"{place}.{name}")


def _mark_class(value: Any, place: str) -> None:
    if isinstance(value, Namespace) and "class_path" in value:
        _mark(value.get("init_args"), place)
        value["dict_kwargs"] = {**(value.get("dict_kwargs") or {}), _PLACE: place}
    else:
        _mark(value, place)
