"""The class that an option has although none is named: of its default, or of the text that is given in place of one."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lit_probsft.cli.config.hints import Option, class_families, is_factory, is_group, known_options, takes
from lit_probsft.cli.config.imports import import_class, import_path
from lit_probsft.cli.config.run_flags import TEXT_MEANS
from lit_probsft.cli.config.scalars import Scalar


@dataclasses.dataclass
class ClassSpec:
    """A class with its arguments.

    Attributes:
        name: as it is written, or the import path; None for a dataclass whose fields are given alone.
        kind: the class.
        arguments: trees of scalars, lists, mappings and further classes, by name.
        preset: arguments of a default, which stay only while no class is named.
        others: `dict_kwargs`, for a class that takes any arguments.
        by_flag: whether a flag names the class.
    """

    name: str | None
    kind: type
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    preset: dict[str, Any] = dataclasses.field(default_factory=dict)
    others: dict[str, Any] = dataclasses.field(default_factory=dict)
    by_flag: bool = False

    @classmethod
    def of(cls, kind: type, preset: Mapping[str, Any] | None = None) -> ClassSpec:
        """The class `kind`, which nothing names."""
        return cls(None if is_group(kind) else import_path(kind), kind, {}, dict(preset or {}))

    @property
    def all_arguments(self) -> dict[str, Any]:
        """The arguments with the preset ones."""
        return {**self.preset, **self.arguments}


def implied_class(option: Option, given: Any, fields: set[str]) -> ClassSpec | None:
    """The class that an option has, for flags below it; None if there is none.

    Args:
        option: which takes classes.
        given: the text or null in its place; None if the option is not given.
        fields: the arguments that are to be set.
    """
    text = given.text if isinstance(given, Scalar) and given.value is not None else None
    if is_factory(option.hint):
        names_default = text is None or text.endswith(f".{getattr(option.default, '__name__', None)}")
        return _made_by(option.default) if names_default and inspect.isfunction(option.default) else None
    if given is None and dataclasses.is_dataclass(option.default) and not isinstance(option.default, type):
        return ClassSpec.of(type(option.default), _changed(option.default))
    families = class_families(option.hint)
    if text is not None and not takes(option.hint, "a text"):
        return None
    kinds = [family for family in families if is_group(family)]
    kinds += [import_class(TEXT_MEANS[path]) for path in map(_path, families) if path in TEXT_MEANS]
    if text is None and not kinds:
        kinds = [family for family in families if not inspect.isabstract(family) and fields <= {*known_options(family)}]
    if not kinds:
        return None
    kind = max(kinds, key=lambda kind: len(fields & set(known_options(kind))))
    if text is None:
        return ClassSpec.of(kind)
    return ClassSpec.of(kind, {next(iter(known_options(kind))): Scalar(text, text)})


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _made_by(function: Callable[..., Any]) -> ClassSpec:
    """The optimizer that a function makes, with the arguments that are not its class's own."""
    made = function([torch.nn.Parameter(torch.zeros(1))])
    options = known_options(type(made))
    changed = {
        name: [*value] if isinstance(value, tuple) else value
        for name, value in made.defaults.items()
        if name in options and value != options[name].default
    }
    return ClassSpec.of(type(made), changed)


def _changed(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from the defaults of its class."""
    changed = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.init and value != default:
            inner = dataclasses.is_dataclass(value) and not isinstance(value, type)
            changed[field.name] = ClassSpec.of(type(value), _changed(value)) if inner else value
    return changed
