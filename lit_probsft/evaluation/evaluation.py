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
        lines: the lines of questions.jsonl: what the answers to each question depend on, and what their grades do.
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
        self._asked = {(name, each.id): each for name, questions in self.questions.items() for each in questions}
        self._names = [*self._asked]  # by the index of the request
        self.requests: list[Request] = []
        self.too_long: list[Row] = []
        self.lines: list[dict[str, Any]] = []
        for index in range(len(self._names)):
            self._ask(index, tokenizer, context_length)

    def _ask(self, index: int, tokenizer: Any, context_length: int | None) -> None:
        task, name = self._names[index]
        settings, question = self.settings[task], self._asked[task, name]
        messages = question.messages
        if settings.system is not None:
            others = [message for message in messages if message["role"] != "system"]
            messages = [{"role": "system", "content": settings.system}, *others]
        prompt: list[int] = []
        text = "\n\n".join(str(message["content"]) for message in messages)
        if tokenizer is not None:
            with errors_within(task, f" (question {name})"):
                prompt = tokenize_prompt(tokenizer, messages, template_options=settings.template_options)
            text = tokenizer.decode(prompt)
        room = settings.max_new_tokens or self.tasks[task].max_new_tokens
        if context_length is not None:
            room = max(0, min(room, context_length - len(prompt)))
        if room:
            self.requests.append(Request(index, messages, prompt, settings.draws(task, name), room))
        else:
            reason = f"the prompt has {len(prompt)} tokens, the model's context {context_length}"
            answer = {"sample": 0, "text": "", "tokens": 0, "finish_reason": "prompt_too_long"}
            self.too_long.append({"task": task, "question": name, **answer, **vars(Grade(False, None, reason))})
        self.lines.append(
            {
                "task": task,
                "question": name,
                "prompt": text,
                "prompt_sha256": _digest(prompt or messages),
                "messages_sha256": _digest(messages),
                "max_new_tokens": room,
                "gold": question.gold,
                "reference": question.reference,
                "choices": dict(question.choices),
                "group": question.group,
                "grader": VERSION,
            }
        )

    def conversations(self, task: str) -> list[tuple[Sequence[Message], Question]]:
        """The conversation up to the answer, and the question, for each request of a task."""
        asked = [(request.messages, self._names[request.index]) for request in self.requests]
        return [(messages, self._asked[name]) for messages, name in asked if name[0] == task]

    def keys(self) -> set[Key]:
        """All answers that the numbers need."""
        drawn = {(*self._names[request.index], draw.sample) for request in self.requests for draw in request.draws}
        return drawn | {key_of(row) for row in self.too_long}

    def remaining(self, done: Collection[Key]) -> list[Request]:
        """The requests without the draws that are done."""
        left = []
        for request in self.requests:
            name = self._names[request.index]
            if draws := [draw for draw in request.draws if (*name, draw.sample) not in done]:
                left.append(replace(request, draws=draws))
        return left

    def grade(self, answer: Answer) -> Row:
        """The row of an answer. May be called in any thread.

        Raises:
            UserError: the task's `grade` raises, or returns something else than a `Grade`.
        """
        task, question = self._names[answer.index]
        row = {"task": task, "question": question, **vars(answer)}
        del row["index"]
        return self.grade_again(row)

    def grade_again(self, row: Row) -> Row:
        """The row with a new grade, as `grade` gives it."""
        if row["finish_reason"] == "prompt_too_long":
            return row
        name, question = row["task"], self._asked[row["task"], row["question"]]
        with errors_within(name, f" (question {question.id})"), self.tasks[name].own_code("grade"):
            grade = self.tasks[name].grade(row["text"], question)
            if not isinstance(grade, Grade) or not _is_grade(vars(grade)):
                kind = type(self.tasks[name]).__name__
                raise UserError("", f"expected a Grade from {kind}.grade, got {shown_value(grade)}")
        return {**row, **vars(grade)}

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
        lines = [line for line in self.lines if line["task"] == name]
        return {
            "source": task.source(),
            "rows_fingerprint": _digest([[line["question"], line["gold"], line["choices"]] for line in lines]),
            "prompt_sha256": _digest([line["messages_sha256"] for line in lines]),  # the same for every tokenizer
            "grader": VERSION,
            "system": settings.system,
            "n": settings.n,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_new_tokens": settings.max_new_tokens or task.max_new_tokens,
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
