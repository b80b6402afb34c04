"""Removes the nulls that Arrow adds.

Arrow (parquet, `datasets`) gives every struct of a column the keys of all its rows, with null where a row has none.
In tools and in the arguments of calls, the model would learn such keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def without_nulls(value: Any) -> Any:
    """Return `value` without the null fields of its mappings, at any depth.

    Nulls in lists stay, since Arrow adds none there. JSON text stays as it is: its nulls are the row's own.
    """
    if value is None or isinstance(value, str | bytes):  # first, because most values are
        return value
    if isinstance(value, Mapping):
        return {key: without_nulls(field) for key, field in value.items() if field is not None}
    if isinstance(value, Sequence):
        return [without_nulls(item) for item in value]
    return value


def turns_without_nulls(turns: Any) -> Any:
    """Return turns whose values have no null fields. A turn's own null fields stay, for errors to name."""
    if isinstance(turns, Mapping):
        return {key: without_nulls(value) for key, value in turns.items()}
    if isinstance(turns, Sequence) and not isinstance(turns, str | bytes):
        return [turns_without_nulls(turn) if isinstance(turn, Mapping) else turn for turn in turns]
    return turns
