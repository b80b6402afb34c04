"""Mathematics: the answer is a number, an expression or a set, in a box."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from typing_extensions import override

from lit_probsft.evaluation.grading import Grade, grade_math
from lit_probsft.evaluation.tasks.base import Question
from lit_probsft.evaluation.tasks.fields import ANSWER, SOLUTION, as_texts, field_of, marked_answer
from lit_probsft.evaluation.tasks.prompted import Prompted

STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."


@dataclass(frozen=True)
class Math(Prompted):
    r"""Questions with a mathematical answer, graded with `grade_math`.

    The answer may be a number, a text, a list of right answers, or a whole solution with its answer after `####` or in
    its last `\boxed{}`.
    """

    prompt: str = "{question}\n" + STEP_BY_STEP

    @override
    def question(self, row: Mapping[str, Any]) -> Question:
        answers = as_texts(field_of(row, self.answer, ANSWER + SOLUTION, "answer"), "answer")
        golds = [_gold(text) for text in answers]
        solution = as_texts(field_of(row, None, SOLUTION, "solution", answers[0]), "solution")[0]
        if marked_answer(solution) == solution == answers[0]:  # nothing but the answer
            solution = f"\\boxed{{{golds[0]}}}"
        elif _gold(solution) != golds[0]:
            solution += f"\n\\boxed{{{golds[0]}}}"
        return Question("", self.messages(row), golds if len(golds) > 1 else golds[0], solution)

    @override
    def grade(self, answer: str, question: Question) -> Grade:
        return grade_math(answer, question.gold, tolerance=question.tolerance)


def _gold(text: str) -> str:
    """The answer in a text, without dollar signs that only mark mathematics."""
    return re.sub(r"(?<!\\)\$", "", marked_answer(text)).strip()


def _files(*names: str) -> tuple[str, ...]:
    """The usual places of a benchmark."""
    return tuple(place for name in names for place in (f"{name}.jsonl", f"math/{name}.jsonl", f"{name}/test.jsonl"))


class Math500(Math):
    """MATH-500: 500 competition problems."""

    hub: ClassVar = {"path": "HuggingFaceH4/MATH-500", "split": "test"}
    files = _files("math500", "math_oai")


class MinervaMath(Math):
    """Minerva Math: 272 problems of university courses in science."""

    hub: ClassVar = {"path": "math-ai/minervamath", "split": "test"}
    files = _files("minerva_math")


class OlympiadBench(Math):
    """OlympiadBench: the 674 competition problems in English that are text and have a final answer."""

    hub: ClassVar = {"path": "Hothan/OlympiadBench", "name": "OE_TO_maths_en_COMP", "split": "train"}
    files = _files("olympiadbench")

    @override
    def question(self, row: Mapping[str, Any]) -> Question:
        return replace(super().question(row), tolerance=float(row.get("error") or 0))


class AIME24(Math):
    """AIME 2024, I and II: 30 problems whose answers are integers."""

    hub: ClassVar = {"path": "math-ai/aime24", "split": "test"}
    files = _files("aime24")


class AIME25(Math):
    """AIME 2025, I and II: 30 problems whose answers are integers."""

    hub: ClassVar = {"path": "math-ai/aime25", "split": "test"}
    files = _files("aime25")


class AMC23(Math):
    """AMC 2023: 40 problems, asked without their choices."""

    hub: ClassVar = {"path": "math-ai/amc23", "split": "test"}
    files = _files("amc23")


class GSM8K(Math):
    """GSM8K: the 1319 word problems of its test set."""

    hub: ClassVar = {"path": "openai/gsm8k", "name": "main", "split": "test"}
    files = ("gsm8k/test.jsonl", "gsm8k.jsonl")
