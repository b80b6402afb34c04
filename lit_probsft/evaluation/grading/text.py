"""Grades an answer by its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rapidfuzz.distance import Jaro, JaroWinkler, Prefix

from lit_probsft.evaluation.grading.extraction import after_thinking
from lit_probsft.evaluation.grading.grade import Grade


def grade_exact(
    answer: str, gold: str | Sequence[str], *, ignore_case: bool = False, ignore_whitespace: bool = False
) -> Grade:
    """Grade an answer that must equal the gold text, apart from its thinking and whitespace at the ends.

    Args:
        answer: what the model wrote.
        gold: the right text, or several that are all right.
        ignore_case: capital and small letters are equal.
        ignore_whitespace: spaces and line breaks do not count.
    """

    def normal(text: str) -> str:
        text = "".join(text.split()) if ignore_whitespace else text.strip()
        return text.casefold() if ignore_case else text

    rest = after_thinking(answer)
    extracted = (rest or "").strip() or None
    correct = rest is not None and normal(rest) in [
        normal(text) for text in ([gold] if isinstance(gold, str) else gold)
    ]
    return Grade(correct, extracted, "the same text" if correct else "another text" if extracted else "no answer")


def jaro_winkler(a: str, b: str, variant: Literal["rapidfuzz", "paper"] = "rapidfuzz") -> float:
    """The Jaro-Winkler similarity of two texts, from 0 to 1.

    The similarity of Jaro (1989), J, and a bonus of 0.1 (1 - J) for each of the first four characters that agree
    (Winkler, 1990). `rapidfuzz` adds the bonus where J > 0.7. `paper` always adds it, and compares small letters
    without whitespace at the ends: "abcd" and "axyz" have .55, and .50 with `rapidfuzz`.
    """
    if variant == "rapidfuzz":
        return JaroWinkler.similarity(a, b)
    a, b = a.lower().strip(), b.lower().strip()
    similarity = Jaro.similarity(a, b)
    return similarity + 0.1 * Prefix.similarity(a[:4], b[:4]) * (1 - similarity)
