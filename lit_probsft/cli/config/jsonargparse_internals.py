"""The private names and the error text of jsonargparse that the command line relies on.

tests/cli/config/test_jsonargparse_internals.py fails if a version of jsonargparse changes one of them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from jsonargparse import ArgumentParser, _typehints


@contextlib.contextmanager
def literal_values() -> Iterator[None]:
    """Let jsonargparse take every text of a configuration for a text.

    It reads a text as YAML, or as the name of a file, at each level of nested classes, and again whenever it checks or
    writes the configuration: `1e3` would become 1000.0, and `# Role: a poet` nothing.
    """
    kept = {name: getattr(_typehints, name) for name in _LITERAL}
    for name, literal in _LITERAL.items():
        setattr(_typehints, name, literal)
    try:
        yield
    finally:
        for name, read in kept.items():
            setattr(_typehints, name, read)


class _NoPath(_typehints.Path):  # type: ignore[misc]
    """A list is not read from the lines of a file, which may be a pipe or a device without an end."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError("a text is not a list")


_LITERAL: dict[str, Callable[..., Any]] = {
    "parse_value_or_config": lambda value, *_, **__: (value, None),
    "basic_json_or_yaml_load": lambda value: value,
    "adapt_subconfig_path": lambda *_, **__: _typehints.not_a_subconfig_path,
    "Path": _NoPath,
}
"""What `literal_values` puts in place of jsonargparse's functions that read a text."""


def flags_of(parser: ArgumentParser) -> tuple[dict[str, Any], set[str]]:
    """Type hints of a parser's flags by name, and the flags that need no value.

    The hint of a group of flags (`trainer`) is None, of a switch bool, of any other flag without a type Any.
    """
    hints: dict[str, Any] = {}
    switches = set()
    for action in parser._actions:
        name = action.dest
        is_group = not hasattr(action, "_typehint") and any(
            other.dest.startswith(f"{name}.") for other in parser._actions
        )
        untyped = bool if action.nargs == 0 else Any
        hints[name] = None if is_group else getattr(action, "_typehint", None) or untyped
        if action.nargs == 0 or name == "print_config":
            switches.add(name)
    return hints, switches


_KEY = re.compile(r'Parser key "([^"]+)":')
_NOISE = re.compile(r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value|NoneType")


def place_and_reason(message: str) -> tuple[str, str]:
    """The option that an error message of jsonargparse names, and the rest of the message in one line."""
    lines = [_KEY.sub("", line).strip().removeprefix("- ") for line in message.splitlines()]
    return ".".join(_KEY.findall(message)), "; ".join(dict.fromkeys(x for x in lines if x and not _NOISE.search(x)))
