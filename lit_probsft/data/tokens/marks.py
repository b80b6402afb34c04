"""Assigns the `{% generation %}` marks of a template to turns, without what the prompt of a turn gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from lit_probsft.data.tokens.rendering import Span, highlight
from lit_probsft.data.tokens.turn_ends import find_end
from lit_probsft.errors import UserError


def spans_by_turn(
    marks: Sequence[Span], turns: Sequence[int], start_of: Callable[[int], int | None]
) -> list[list[Span]] | None:
    """Return the marks of each turn; a turn may have several, where the template leaves something out in between.

    Args:
        marks: the spans that the template marks.
        turns: indices of all the assistant's messages.
        start_of: finds where a turn starts; None if the text does not show it.

    Returns:
        None if the text does not show which marks belong to which turn.
    """
    joined = _join_touching(marks)
    if len(joined) == len(turns):
        return [[mark] for mark in joined]
    starts = [start for turn in turns if (start := start_of(turn)) is not None]
    found: list[list[Span]] = [[] for _ in turns]
    for mark in joined:
        earlier = [number for number, start in enumerate(starts) if start < mark[1]]
        if not earlier or len(starts) < len(turns):
            return None
        found[earlier[-1]].append(mark)
    return found


def without_trailing_space(text: str, spans: Sequence[Span], special: re.Pattern[str]) -> list[Span]:
    """Return the spans without white space after a special token at their end, which the model does not write."""
    trimmed = []
    for start, end in spans:
        last = find_end(text, (start, end), special)
        trimmed.append((start, end if last is None or text[last:end].strip() else last))
    return trimmed


def ambiguous_marks(text: str, marks: Sequence[Span], turns: Collection[int]) -> UserError:
    """The error for marks that cannot be told apart."""
    return UserError(
        "chat_template",
        f"the template marks {len(marks)} spans as generated for {len(turns)} assistant turns, so the turns "
        f"cannot be told apart; the marked spans are between ⟦ and ⟧:\n{highlight(text, marks)}",
    )


def _join_touching(marks: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in marks:
        if joined and joined[-1][1] == start and joined[-1][0] < joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
