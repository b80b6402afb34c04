"""Answers that are compared as texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from lit_probsft.data.rows.figlet import FigletPuzzles
from lit_probsft.evaluation.grading import Grade, grade_exact, jaro_winkler
from lit_probsft.evaluation.tasks.base import Question
from lit_probsft.evaluation.tasks.fields import ANSWER, as_texts, field_of
from lit_probsft.evaluation.tasks.prompted import Prompted


class Exact(Prompted):
    """Questions whose answer is a text, or one of a list of texts, graded with `grade_exact`."""

    @override
    def question(self, row: Mapping[str, Any]) -> Question:
        golds = as_texts(field_of(row, self.answer, ANSWER, "answer"), "answer")
        return Question("", self.messages(row), golds if len(golds) > 1 else golds[0], golds[0])

    @override
    def grade(self, answer: str, question: Question) -> Grade:
        return grade_exact(answer, question.gold)


@dataclass(frozen=True)
class Figlet(Exact):
    """Words drawn in ASCII art. Scores: the Jaro-Winkler similarity as rapidfuzz and as the paper's code define it.

    Args:
        start: index of the first puzzle, see `FigletPuzzles`.
        count: number of puzzles. The defaults are the paper's test rows.
    """

    start: int = 40000
    count: int = 5000

    max_new_tokens = 16

    @override
    def source(self) -> dict[str, Any]:
        return super().source() if self.path else FigletPuzzles(start=self.start, count=self.count).describe()

    @override
    def load(self) -> Sequence[Mapping[str, Any]]:
        return super().load() if self.path else FigletPuzzles(start=self.start, count=self.count).load()

    @override
    def grade(self, answer: str, question: Question) -> Grade:
        grade = super().grade(answer, question)
        texts = grade.extracted or "", question.reference
        scores = {"jaro_winkler": jaro_winkler(*texts), "jaro_winkler_paper": jaro_winkler(*texts, variant="paper")}
        return replace(grade, scores=scores)
