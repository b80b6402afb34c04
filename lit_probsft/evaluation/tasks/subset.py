"""Which questions `--limit` asks."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import chain, zip_longest


def chosen(groups: Sequence[str | None], limit: int | None) -> list[int]:
    """Indices of at most `limit` questions, ascending.

    The choice depends on the number of questions and their groups alone, and on no seed. The questions of a smaller
    limit are among those of a larger one. Every group gives the same number, or all that it has.

    Args:
        groups: the group of each question.
        limit: number of questions, at least 1; None is all.
    """
    members: dict[str | None, list[int]] = {}
    for index in sorted(range(len(groups)), key=lambda index: sha256(str(index).encode()).digest()):
        members.setdefault(groups[index], []).append(index)
    order = [index for index in chain.from_iterable(zip_longest(*members.values())) if index is not None]
    return sorted(order[:limit])
