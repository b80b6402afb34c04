"""The private names and the error text of jsonargparse that the command line relies on.

tests/cli/config/test_jsonargparse_internals.py fails if a version of jsonargparse changes one of them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser, _typehints


@contextlib.contextmanager
def values_as_typed() -> Iterator[None]:
    """Let the value of a nested flag (`--data.train.prompt`) reach its option as it was typed.

    jsonargparse reads such a value as YAML at each level and hands down Python's spelling of the result: `null` would
    arrive as the text "None", and a prompt `Question: {question}` as a mapping, which is refused.
    """
    read = _typehints.parse_value_or_config

    def read_at_last_level(value: Any, *args: Any, **options: Any) -> Any:
        return (value, None) if isinstance(value, _typehints.NestedArg) else read(value, *args, **options)

    _typehints.parse_value_or_config = read_at_last_level
    try:
        yield
    finally:
        _typehints.parse_value_or_config = read


def flags_of(parser: ArgumentParser) -> tuple[dict[str, Any], set[str]]:
    """Type hints of a parser's flags by name, and the flags that need no value.

    The hint of a group of flags (`trainer`) is None, that of a flag without a type Any.
    """
    hints: dict[str, Any] = {}
    switches = set()
    for action in parser._actions:
        name = action.dest
        is_group = not hasattr(action, "_typehint") and any(
            other.dest.startswith(f"{name}.") for other in parser._actions
        )
        hints[name] = None if is_group else getattr(action, "_typehint", None) or Any
        if action.nargs == 0 or name == "print_config":
            switches.add(name)
    return hints, switches


_KEY = re.compile(r'Parser key "([^"]+)":')
_NOISE = re.compile(r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value|NoneType")


def place_and_reason(message: str) -> tuple[str, str]:
    """The option that an error message of jsonargparse names, and the rest of the message in one line."""
    lines = [_KEY.sub("", line).strip().removeprefix("- ") for line in message.splitlines()]
    return ".".join(_KEY.findall(message)), "; ".join(dict.fromkeys(x for x in lines if x and not _NOISE.search(x)))
