"""What a grader returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VERSION = 2
"""Raise it when a grader of the package decides otherwise: stored answers are then graded again."""


@dataclass(frozen=True)
class Grade:
    """Whether an answer is right, and why.

    Attributes:
        correct: the answer is right.
        extracted: the part of the text that was compared; None if the text has no answer.
        reason: why it is right or wrong, in a few words.
        scores: further scores from 0 to 1 by name, such as `jaro_winkler`.
    """

    correct: bool
    extracted: str | None
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)
