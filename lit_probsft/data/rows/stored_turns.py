"""Turns as tables store them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def stored_turns(value: Any) -> Any:
    """Return the list of turns that a cell holds; a value of any other form as it is.

    Args:
        value: the list itself; its JSON text; or a mapping of lists, `{"role": [...], "content": [...]}`, which
            `datasets` has made of a list of mappings for years.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, Mapping) and value and all(_is_list(field) for field in value.values()):
        lengths = {len(field) for field in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
