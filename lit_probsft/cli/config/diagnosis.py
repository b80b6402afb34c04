"""Finds what is wrong with a configuration that the parser has refused.

Walks over what files and flags say together and compares every key, class and value with the signature that it belongs
to. Nothing here decides whether a configuration is valid.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from lit_probsft.cli.config.hints import (
    Option,
    accepts,
    alternatives,
    choices,
    class_families,
    described,
    is_factory,
    is_group,
    is_usable,
    members,
    options_of,
)
from lit_probsft.cli.config.imports import import_class
from lit_probsft.cli.config.run_flags import OUR_CHOICES
from lit_probsft.cli.config.typed_values import NoValue
from lit_probsft.cli.config.yaml_files import shown
from lit_probsft.errors import UserError, near_matches

_RENAMED = {"checkpoints.every_n_steps": "checkpoints.save_every"}
"""Options of earlier versions, and what does the same now."""

_A_CLASS = "a class (its name or import path)"


class Diagnosis:
    """The walk, which raises a `UserError` at the first mistake.

    Args:
        flags: type hints of the parser's flags by name; None for a group of flags.
    """

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self._flags = dict(flags)
        self._classes: dict[str, Any] = {}
        """The class chosen at each place so far; a text or None where that is given in place of a class."""
        self._factories: set[str] = set()
        self._given: set[str] = set()
        self._items: dict[str, Any] = {}
        """Type hints of the items of lists and mappings, by their places."""
        for part in ("model", "data"):
            self._classes[part] = class_families(flags[part])[0]

    def check(self, content: Mapping[str, Any]) -> None:
        """Raise what is wrong with a composed configuration; returns if nothing is found."""
        self._check_mapping("", content)
        self._check_required()

    def _check_mapping(self, place: str, content: Mapping[Any, Any]) -> None:
        for key, value in content.items():
            self._check_option(f"{place}.{key}" if place else str(key), value)

    def _check_option(self, place: str, value: Any) -> None:
        hint = self._hint(place)
        self._given.add(place)
        if isinstance(value, NoValue):
            raise UserError(value.flag, "expected a value, got none")
        if hint is None and isinstance(value, Mapping):
            self._check_mapping(place, value)
        elif hint is None:
            raise UserError(place, f"expected a mapping, or a YAML file with one, got {shown(value)}")
        elif hint is not Any:
            self._check_value(place, value, hint)

    def _check_value(self, place: str, value: Any, hint: Any) -> None:
        families = class_families(hint)
        if is_factory(hint):
            self._factories.add(place)
        if families and isinstance(value, Mapping) and "class_path" in value:
            name, arguments = value["class_path"], value.get("init_args", {})
            self._check_class(place, name, families)
            if outside := ", ".join(str(key) for key in value if key not in ("class_path", "init_args", "dict_kwargs")):
                problem = f"expected the arguments of {name} under `init_args`, got {outside} next to `class_path`"
                raise UserError(place, problem)
            if not isinstance(arguments, Mapping):
                problem = f"expected a mapping of the arguments of {name}, got {shown(arguments)}"
                raise UserError(f"{place}.init_args", problem)
            self._check_mapping(place, arguments)
        elif families and isinstance(value, Mapping) and not accepts(value, hint):
            self._check_mapping(place, value)
        elif accepts(value, hint):
            if families and (value is None or isinstance(value, str)):
                self._classes[place] = value
            self._check_items(place, value, hint)
        elif is_group(hint):
            if not isinstance(value, Mapping):
                raise UserError(place, f"expected a mapping, or a YAML file with one, got {shown(value)}")
            self._check_mapping(place, value)
        elif families and isinstance(value, str | bool) and value != "":
            self._check_class(place, str(value), families)
        else:
            raise _wrong_value(place, value, hint)

    def _check_items(self, place: str, value: Any, hint: Any) -> None:
        """The items of a list or a mapping that may be classes."""
        if not isinstance(value, list | Mapping):
            return
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        inner = [get_args(kind)[-1] for kind in alternatives(hint) if get_args(kind) and not is_factory(kind)]
        kinds = [kind for kind in inner if class_families(kind)]
        for key, item in items if len(kinds) == 1 else ():
            at = f"{place}.{key}" if isinstance(value, Mapping) else f"{place}[{key}]"
            self._items[at] = kinds[0]
            self._check_value(at, item, kinds[0])

    def _check_class(self, place: str, name: Any, families: list[type]) -> None:
        if not isinstance(name, str):
            raise UserError(f"{place}.class_path", f"expected {_A_CLASS}, got {shown(name)}")
        derived = {member for family in families for member in members(family)}
        known = {member.__name__: member for member in derived}
        found: Any = known.get(name) or import_class(name, place)
        if found is None and name in (others := self._all_classes()):
            found = others[name]
        if found is None:
            names = sorted(known)
            if place.endswith("optimizer") and "." in name:  # torch's and, once imported, bitsandbytes' of one name
                names = sorted(f"{kind.__module__.partition('.')[0]}.optim.{kind.__name__}" for kind in derived)
            written = name.lower() if name in ("True", "False") else name
            raise UserError(place, f"expected {_A_CLASS}, got {written!r}{_appended(near_matches(name, names))}")
        is_class = isinstance(found, type)
        function = place in self._factories and not is_class and callable(found)
        if not function and not (is_class and issubclass(found, tuple(families))):
            raise UserError(place, f"{name} is not a subclass of {families[0].__name__}")
        if function and "return" not in getattr(found, "__annotations__", {}):
            raise UserError(
                place, f"{name} needs the type hint of what it returns, such as `-> {families[0].__name__}`"
            )
        if is_class and inspect.isabstract(found):
            lacks = ", ".join(sorted(found.__abstractmethods__))
            raise UserError(place, f"{name} is abstract: it does not define {lacks}")
        self._classes = {at: kind for at, kind in self._classes.items() if not at.startswith(f"{place}.")}
        self._classes[place] = found

    def _all_classes(self) -> dict[str, type]:
        """Classes of all families that the options of the model and the data take, by name."""
        options = [option for part in ("model", "data") for option in (options_of(self._classes[part]) or {}).values()]
        families = {family for option in options for family in class_families(option.hint)}
        ours = [family for family in families if family.__module__.startswith("lit_probsft.")]
        return {member.__name__: member for family in ours for member in members(family)}

    def _check_required(self) -> None:
        for part in ("model", "data"):
            if self._classes[part] is None:
                raise UserError(part, "expected a value, got none")
        for place, owner in self._classes.items():
            if not isinstance(owner, type) or place in self._factories:
                continue
            for name, option in (options_of(owner) or {}).items():
                at = f"{place}.{name}"
                if option.required and not any(given == at or given.startswith(f"{at}.") for given in self._given):
                    raise UserError(at, "expected a value, got none")

    # --- where an option belongs

    def _hint(self, place: str) -> Any:
        """The type hint of the option at `place`: None for a group of flags, Any if it is not known."""
        parts = place.split(".")
        heads = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        known_hints = self._flags | self._items
        here = next((head for head in heads if head in known_hints), None)
        if here is None or (known_hints[here] is None and here != place):
            raise self._no_option(place, here or "", self._flags_below(here or ""))
        option = Option(known_hints[here])
        for name in place[len(here) + 1 :].split(".") if here != place else ():
            owner = self._owner(here, option)
            if isinstance(owner, str):
                raise UserError(place, f"expected a class with arguments as {here}, got the text {owner!r}")
            if owner is not None and not isinstance(owner, type):
                raise UserError(
                    here,
                    f"{getattr(owner, '__name__', owner)} is a function, which takes no arguments from a configuration",
                )
            known = None if owner is None else options_of(owner)
            if owner is None or known is None:
                return Any
            here = f"{here}.{name}"
            if name not in known:
                raise self._no_option(here, owner.__name__, known, owner)
            option = known[name]
        return option.hint

    def _owner(self, place: str, option: Option) -> Any:
        """The class that the options below `place` belong to, the text given in its place, or None if unknown."""
        if place in self._classes:
            return self._classes[place]
        families = class_families(option.hint)
        groups = [family for family in families if is_group(family)]
        if len(groups) == 1:
            return groups[0]
        return type(option.default) if families and isinstance(option.default, tuple(families)) else None

    def _flags_below(self, group: str) -> list[str]:
        below = [flag.removeprefix(f"{group}.") for flag in self._flags if flag.startswith(f"{group}.")]
        return [flag for flag in below or self._flags if "." not in flag and not flag.endswith("help")]

    def _no_option(self, place: str, owner: str, known: Iterable[str], kind: Any = None) -> UserError:
        from lit_probsft.objectives import Objective

        if place in _RENAMED:
            return UserError(place, f"this option is now called {_RENAMED[place]}")
        name, known = place.rpartition(".")[2], [*known]
        elsewhere = sorted((at for at in self._all_options() if at.endswith(f".{name}")), key=lambda at: at.count("."))
        if isinstance(kind, type) and issubclass(kind, Objective):
            elsewhere = []  # an objective's alpha is not an adapter's
        if elsewhere:
            hint = f" Did you mean {' or '.join(map(repr, elsewhere[:3]))}?"
        else:
            hint = near_matches(name, [*known, "class_path", "init_args"] if kind else known)
        if not hint and owner and len(known) < 13:
            hint = f" It takes {', '.join(known)}." if known else " It has no options."
        return UserError(place, f"{f'{owner} has no option {name!r}' if owner else 'no such option'}{_appended(hint)}")

    def _all_options(self) -> list[str]:
        """Every option of the flags and of the classes chosen so far."""
        found = [flag for flag in self._flags if not flag.endswith("help")]
        places = {"model": Option(Any), "data": Option(Any)}
        while places:
            place, option = places.popitem()
            owner = self._owner(place, option)
            inner = (None if isinstance(owner, str) or owner is None else options_of(owner)) or {}
            found += [f"{place}.{name}" for name in inner]
            places |= {f"{place}.{name}": one for name, one in inner.items() if place.count(".") < 2}
        return sorted(found)


def _wrong_value(place: str, value: Any, hint: Any) -> UserError:
    words = OUR_CHOICES.get(place) or described(hint)
    got = shown(value)
    if not is_usable(value):
        change = ("number", "number of at most 64 bits") if isinstance(value, int) else ("a number", "a finite number")
        words = words.replace(*change, 1)
    if class_families(hint) and not re.search("list|true|number", words):
        words = f"{_A_CLASS} or a mapping of its arguments"
    elif value == "None":
        got = "the text 'None'"
    near = near_matches(value, choices(hint)) if isinstance(value, str) and place not in OUR_CHOICES else ""
    return UserError(place, f"expected {words}, got {got}{_appended(near)}")


def _appended(hint: str) -> str:
    """A hint, if there is one, after the end of the sentence before it."""
    return f".{hint}" if hint else ""
