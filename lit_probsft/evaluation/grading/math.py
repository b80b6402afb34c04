"""Grades mathematical answers."""

from __future__ import annotations

from collections.abc import Sequence

from lit_probsft.evaluation.grading.comparison import Comparison, NeedsSymbols, squeezed
from lit_probsft.evaluation.grading.extraction import find_answer
from lit_probsft.evaluation.grading.grade import Grade
from lit_probsft.evaluation.grading.latex import depth, normalize
from lit_probsft.evaluation.grading.time_limit import OutOfTime, WorkerDied, limited

_LONGEST = 2000
_DEEPEST = 30
_SECONDS = 5.0


def grade_math(answer: str, gold: str | Sequence[str], *, tolerance: float = 0.0) -> Grade:
    r"""Whether the answer in a model's text equals the gold one. Never raises.

    README.md in this folder says where it looks for the answer and what counts as equal.

    Args:
        answer: the model's text.
        gold: the right answer, in LaTeX or plain text, or a list, where any is right. Several values that are all
            required are one gold, such as `1,2` or `\{1,2\}`.
        tolerance: the largest difference from a gold number that is still right.
    """
    text = None
    try:
        text, reason = find_answer(answer)
        if text is None:
            return Grade(False, None, reason)
        reasons = []
        for one in [gold] if isinstance(gold, str) else gold:
            correct, reason = _equal(str(one), text, tolerance)
            if correct:
                return Grade(True, text, reason)
            reasons.append(reason)
        return Grade(False, text, max(reasons, key=len, default="no gold answer"))
    except Exception as error:  # a grader never raises
        return Grade(False, text, f"could not be graded: {type(error).__name__}")


def _equal(gold: str, answer: str, tolerance: float) -> tuple[bool, str]:
    """Whether two answers are equal, and why."""
    if gold.strip() == answer.strip():
        return True, "the same text"
    if max(len(gold), len(answer)) > _LONGEST:
        return False, f"not the same text, and too long to compare: more than {_LONGEST} characters"
    gold, answer = normalize(gold), normalize(answer)
    if not gold:
        return False, "the gold answer is empty"
    if squeezed(gold) != squeezed(answer) and max(depth(gold), depth(answer)) > _DEEPEST:
        return False, f"not the same text, and too deep to compare: more than {_DEEPEST} brackets in brackets"
    try:
        correct = Comparison(tolerance).equal(gold, answer)
    except NeedsSymbols:
        try:
            correct = limited(compare, gold, answer, tolerance, seconds=_SECONDS)
        except (OutOfTime, WorkerDied, MemoryError) as error:
            return False, f"not the same text, and not compared: {error or 'too much memory'}"
    return correct, "equal" if correct else "not equal"


def compare(gold: str, answer: str, tolerance: float) -> bool:
    """Whether two normalized answers are equal. Needs a time limit."""
    from lit_probsft.evaluation.grading import expressions

    return Comparison(tolerance, expressions).equal(gold, answer)
