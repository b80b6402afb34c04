"""Grades mathematical answers."""

from __future__ import annotations

from collections.abc import Sequence

from lit_probsft.evaluation.grading.comparison import Comparison, NeedsSymbols, compare
from lit_probsft.evaluation.grading.extraction import find_answer
from lit_probsft.evaluation.grading.grade import Grade
from lit_probsft.evaluation.grading.latex import normalize
from lit_probsft.evaluation.grading.time_limit import OutOfTime, WorkerDied, limited

LONGEST = 2000
"""The most characters of an answer that is compared; a longer one is only right if it is the gold's own text."""
_DEEPEST = 50
_SECONDS = 5.0


def grade_math(answer: str, gold: str | Sequence[str], *, tolerance: float = 0.0) -> Grade:
    r"""Whether the answer in a model's text equals the gold one. Never raises, whatever the texts are.

    README.md of this folder says where the answer is looked for and what counts as equal.

    Args:
        answer: the model's text.
        gold: the right answer, in LaTeX or plain text; or several, any of which is right. Several values that are all wanted are one
            gold, such as `1,2` or `\{1,2\}`.
        tolerance: the largest difference from a gold number that is still right.

    Returns:
        The grade. Its reason is "equal", "equal as text", "not equal", or says why there is no answer or no comparison.
    """
    try:
        found = find_answer(answer)
        if found.text is None:
            return Grade(False, None, found.place)
        reason = "not equal"
        for one in [gold] if isinstance(gold, str) else gold:
            correct, why = _equal(str(one), found.text, tolerance)
            if correct:
                return Grade(True, found.text, why)
            reason = why if why != "not equal" else reason
        return Grade(False, found.text, reason)
    except (Exception, RecursionError) as error:  # a grader never raises
        return Grade(False, None, f"could not be graded: {type(error).__name__}")


def _equal(gold: str, answer: str, tolerance: float) -> tuple[bool, str]:
    if gold.strip() == answer.strip():
        return bool(gold.strip()), "equal as text" if gold.strip() else "empty gold"
    if max(len(gold), len(answer)) > LONGEST:
        return False, f"too long: more than {LONGEST} characters"
    gold, answer = normalize(gold), normalize(answer)
    if gold.replace(" ", "") == answer.replace(" ", ""):
        return bool(gold), "equal" if gold else "empty gold"
    if max(_depth(gold), _depth(answer)) > _DEEPEST:
        return False, f"too deep: more than {_DEEPEST} nested brackets"
    try:
        correct = Comparison(tolerance).equal(gold, answer)
    except NeedsSymbols:
        try:
            correct = limited(compare, gold, answer, tolerance, seconds=_SECONDS)
        except OutOfTime:
            return False, f"not equal as text, and the comparison took more than {_SECONDS:g} seconds"
        except WorkerDied:
            return False, "not equal as text, and the comparison ran out of memory"
    return correct, "equal" if correct else "not equal"


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
