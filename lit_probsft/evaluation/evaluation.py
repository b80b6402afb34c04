"""Tasks as requests for answers, and answers as graded rows and numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lit_probsft.data.rows.columns import shown_value
from lit_probsft.data.rows.conversation import Message
from lit_probsft.data.tokens.tokenization import tokenize_prompt
from lit_probsft.errors import UserError, errors_within
from lit_probsft.evaluation.generation.requests import Answer, Request
from lit_probsft.evaluation.grading.grade import VERSION, Grade
from lit_probsft.evaluation.settings import Settings
from lit_probsft.evaluation.tasks.base import Question, Task

Row = dict[str, Any]
"""A graded answer: a line of predictions.jsonl."""

Key = tuple[str, str, int]
"""Names an answer: task, question, sample."""


def key_of(row: Mapping[str, Any]) -> Key:
    """The task, question and sample of a row."""
    return row["task"], row["question"], row["sample"]


def is_row(content: Mapping[str, Any]) -> bool:
    """Whether an object is a graded answer; raises if it has another shape."""
    return (
        all(isinstance(content[name], str) for name in ("task", "question", "text"))
        and all(type(content[name]) is int for name in ("sample", "tokens"))
        and content["tokens"] >= 0
        and content["finish_reason"] in ("stop", "length", "prompt_too_long")
        and _is_grade(content)
    )


class Evaluation:
    """The questions of tasks, as requests to a backend.

    Args:
        tasks: by name.
        settings: of all tasks, or by the name of the task.
        tokenizer: of the model, with its chat template; None if a server renders the prompts.
        context_length: tokens of a prompt and its answer together; None if it is not known.

    Raises:
        UserError: the rows of a task cannot be read, or turned into prompts.

    Attributes:
        questions: by task.
        requests: one for each question whose prompt fits the context.
        too_long: a row for each question whose prompt does not fit: it has no answer, and counts as wrong.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        settings: Settings | Mapping[str, Settings],
        tokenizer: Any,
        context_length: int | None,
    ) -> None:
        self.tasks = dict(tasks)
        self.settings = dict.fromkeys(tasks, settings) if isinstance(settings, Settings) else dict(settings)
        self.questions: dict[str, list[Question]] = {}
        for name, task in self.tasks.items():
            with errors_within(name):
                self.questions[name] = task.questions(self.settings[name].limit)
        self.requests: list[Request] = []
        self.too_long: list[Row] = []
        self._asked: list[tuple[str, Question]] = []  # by the index of the request
        self._by_name: dict[tuple[str, str], Question] = {}
        self._lines: list[dict[str, Any]] = []
        for name, questions in self.questions.items():
            for question in questions:
                self._ask(name, question, tokenizer, context_length)

    def _ask(self, task: str, question: Question, tokenizer: Any, context_length: int | None) -> None:
        settings = self.settings[task]
        messages = question.messages
        if settings.system is not None:
            others = [message for message in messages if message["role"] != "system"]
            messages = [{"role": "system", "content": settings.system}, *others]
        prompt: list[int] = []
        text = "\n\n".join(str(message["content"]) for message in messages)
        if tokenizer is not None:
            with errors_within(task, f" (question {question.id})"):
                prompt = tokenize_prompt(tokenizer, messages, template_options=settings.template_options)
            text = tokenizer.decode(prompt)
        most = settings.max_new_tokens or self.tasks[task].max_new_tokens
        room = most if context_length is None else min(most, context_length - len(prompt))
        if room > 0:
            draws = settings.draws(task, question.id)
            self.requests.append(Request(len(self._asked), messages, prompt, draws, room))
        else:
            reason = f"the prompt has {len(prompt)} tokens, the model's context {context_length}"
            row = self._row(task, question.id, 0, "", 0, "prompt_too_long", Grade(False, None, reason))
            self.too_long.append(row)
        self._asked.append((task, question))
        self._by_name[task, question.id] = question
        self._lines.append(
            {
                "task": task,
                "question": question.id,
                "prompt": text,
                "prompt_sha256": _digest(prompt or messages),
                "messages_sha256": _digest(messages),
                "max_new_tokens": max(room, 0),
                "gold": question.gold,
                "reference": question.reference,
                "choices": dict(question.choices),
                "group": question.group,
                "grader": VERSION,
            }
        )

    def lines(self) -> list[dict[str, Any]]:
        """The lines of questions.jsonl: what the answers to each question depend on, and what their grades do."""
        return self._lines

    def conversations(self, task: str) -> list[tuple[Sequence[Message], Question]]:
        """The conversation up to the answer, and the question, for each request of a task."""
        asked = [(request.messages, *self._asked[request.index]) for request in self.requests]
        return [(messages, question) for messages, name, question in asked if name == task]

    def keys(self) -> set[Key]:
        """All answers that the numbers need."""
        drawn = {
            (task, question.id, draw.sample)
            for request in self.requests
            for task, question in [self._asked[request.index]]
            for draw in request.draws
        }
        return drawn | {key_of(row) for row in self.too_long}

    def remaining(self, done: Collection[Key]) -> list[Request]:
        """The requests without the draws that are done."""
        left = []
        for request in self.requests:
            task, question = self._asked[request.index]
            draws = [draw for draw in request.draws if (task, question.id, draw.sample) not in done]
            if draws:
                left.append(replace(request, draws=draws))
        return left

    def grade(self, answer: Answer) -> Row:
        """The row of an answer. May be called in any thread.

        Raises:
            UserError: the task's `grade` raises, or returns something else than a `Grade`.
        """
        task, question = self._asked[answer.index]
        grade = self._grade(task, answer.text, question)
        return self._row(task, question.id, answer.sample, answer.text, answer.tokens, answer.finish_reason, grade)

    def grade_again(self, row: Row) -> Row:
        """The row with a new grade, as `grade` gives it, if its question is one of this evaluation's; or the row."""
        question = self._by_name.get((row["task"], row["question"]))
        if question is None or row["finish_reason"] == "prompt_too_long":
            return row
        return {**row, **_graded(self._grade(row["task"], row["text"], question))}

    def _grade(self, task: str, text: str, question: Question) -> Grade:
        with errors_within(task, f" (question {question.id})"), self.tasks[task].own_code("grade"):
            grade = self.tasks[task].grade(text, question)
            if not isinstance(grade, Grade) or not _is_grade(_graded(grade)):
                kind = type(self.tasks[task]).__name__
                raise UserError("", f"expected a Grade from {kind}.grade, got {shown_value(grade)}")
            return grade

    def numbers(self, rows: Iterable[Row]) -> dict[str, Any]:
        """The numbers of each task, by the schema in README.md.

        Args:
            rows: of all `keys`; others are ignored.
        """
        from lit_probsft.evaluation.numbers import summarize

        wanted, by_task = self.keys(), {name: list[Row]() for name in self.tasks}
        for row in rows:
            if key_of(row) in wanted:
                by_task[row["task"]].append(row)
        return {
            name: {
                "settings": self._settings_of(name),
                "likelihood": None,
                **summarize(by_task[name], self.questions[name]),
            }
            for name in self.tasks
        }

    def _settings_of(self, name: str) -> dict[str, Any]:
        task, settings = self.tasks[name], self.settings[name]
        lines = [line for line in self._lines if line["task"] == name]
        return {
            "source": task.source(),
            "rows_fingerprint": _digest([[line["question"], line["gold"], line["choices"]] for line in lines]),
            "prompt_sha256": _digest([line["messages_sha256"] for line in lines]),  # the same for every tokenizer
            "grader": VERSION,
            "n": settings.n,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_new_tokens": settings.max_new_tokens or task.max_new_tokens,
        }

    @staticmethod
    def _row(task: str, question: str, sample: int, text: str, tokens: int, finish: str, grade: Grade) -> Row:
        answer = {"sample": sample, "text": text, "tokens": tokens, "finish_reason": finish}
        return {"task": task, "question": question, **answer, **_graded(grade)}


def _graded(grade: Grade) -> dict[str, Any]:
    return {
        "correct": grade.correct,
        "extracted": grade.extracted,
        "reason": grade.reason,
        "scores": dict(grade.scores),
    }


def _is_grade(content: Mapping[str, Any]) -> bool:
    return (
        isinstance(content["correct"], bool)
        and isinstance(content["extracted"], str | None)
        and isinstance(content["reason"], str)
        and all(isinstance(score, int | float) and 0 <= score <= 1 for score in content["scores"].values())
    )


def _digest(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
