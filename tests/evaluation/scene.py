"""A task, a backend and files for evaluations that take no time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_probsft.evaluation.evaluation import Evaluation, key_of
from lit_probsft.evaluation.generation.requests import Answer, Backend, Request
from lit_probsft.evaluation.grading.grade import Grade
from lit_probsft.evaluation.session import evaluate
from lit_probsft.evaluation.settings import Settings
from lit_probsft.evaluation.store import Store
from lit_probsft.evaluation.subject import Subject
from lit_probsft.evaluation.tasks.base import Question, Task


@dataclass(frozen=True)
class Sums(Task):
    """Additions modulo 3, so that a third of random answers is right."""

    count: int = 5
    shift: int = 1
    words: str = "{} plus?"

    def load(self) -> list[dict[str, Any]]:
        return [{"a": number} for number in range(self.count)]

    def question(self, row: Mapping[str, Any]) -> Question:
        message = {"role": "user", "content": self.words.format(row["a"])}
        return Question(str(row["a"]), [message], str((row["a"] + self.shift) % 3))

    def grade(self, answer: str, question: Question) -> Grade:
        return Grade(answer == question.gold, answer, "compared", {"length": len(answer) / 4})


class Random(Backend):
    """Draws an answer from the seed. `fails` is called with the number of answers so far."""

    def __init__(self, fails: Callable[[int], None] = lambda _: None) -> None:
        self.fails, self.asked = fails, list[tuple[int, int]]()

    def answer(self, requests: Sequence[Request]) -> Iterator[Answer]:
        for request in requests:
            for draw in request.draws:
                self.fails(len(self.asked))
                self.asked.append((request.index, draw.sample))
                text = str((draw.seed // 7) % 3) if draw.temperature else "1"
                yield Answer(request.index, draw.sample, text, 1 + draw.seed % 5, "stop")

    def describe(self) -> Mapping[str, Any]:
        return {"name": "random"}


TASKS: dict[str, Task] = {"sums": Sums(), "more": Sums(count=7, shift=2)}
SAMPLED = Settings(n=3, temperature=1.0, greedy=True)


def measure(
    out: Path,
    backend: Backend | None = None,
    tasks: Mapping[str, Task] | None = None,
    settings: Settings = SAMPLED,
    *,
    weights: str = "w",
    overwrite: bool = False,
    tokenizer: Any = None,
    context: int | None = None,
) -> dict[str, Any]:
    """Evaluate without a model."""
    subject = Subject(backend or Random(), tokenizer, context, {"weights": weights})
    evaluation = Evaluation(TASKS if tasks is None else tasks, settings, tokenizer, context)
    with Store(out, overwrite) as store:
        return evaluate("m", subject, evaluation, store)


def outcome(results: Mapping[str, Any]) -> Any:
    """The part of a results file that a repetition must repeat."""
    return json.loads(json.dumps([results["tasks"], results["mean"]]))


def answers_of(out: Path) -> list[tuple[str, str, int]]:
    """The keys in predictions.jsonl, in order."""
    path = out.with_suffix("") / "predictions.jsonl"
    return [key_of(json.loads(line)) for line in path.read_text().splitlines()]
