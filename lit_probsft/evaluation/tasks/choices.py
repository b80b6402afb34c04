"""Multiple-choice questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, ClassVar

from typing_extensions import override

from lit_probsft.data.rows.choices import MultipleChoice
from lit_probsft.data.rows.columns import shown_value
from lit_probsft.data.rows.files import local_paths, refuse_broken
from lit_probsft.data.rows.labels import name_of_label
from lit_probsft.data.rows.row_source import Rows
from lit_probsft.errors import UserError
from lit_probsft.evaluation.grading import Grade, grade_choice
from lit_probsft.evaluation.tasks.base import Question, Task
from lit_probsft.evaluation.tasks.fields import ANSWER, QUESTION, as_text, field_of
from lit_probsft.evaluation.tasks.math import STEP_BY_STEP
from lit_probsft.evaluation.tasks.prompted import Prompted
from lit_probsft.storage.hub import dataset_file

RIGHT = ("answerKey", "answer_idx", "answer_index", *ANSWER, "label", "final_decision")


@dataclass(frozen=True)
class Choices(Prompted):
    """Questions with choices, graded with `grade_choice`.

    The choices may be a list of texts (A, B, ...), a mapping from labels to texts, OpenBookQA's lists `label` and
    `text`, or columns of their own. The answer may be a label, the index of a choice from 0, or its text.

    Args:
        prompt: a template as in `Prompted`; `{choices}` has one line per choice, such as `A. a text`.
        choices: the column with the choices, by default `choices` or `options`; or a list of columns.
        last_named: grade the last choice that the answer names anywhere, as the paper does in medicine, instead of
            the one that it states.
    """

    prompt: str = "{question}\n{choices}\nAnswer with the letter of the right choice."
    choices: str | list[str] | None = None
    last_named: bool = False

    @override
    def question(self, row: Mapping[str, Any]) -> Question:
        choices = _choices(row, self.choices)
        gold = _label(name_of_label(field_of(row, self.answer, RIGHT, "answer")), choices)
        lines = "\n".join(f"{label}. {text}" for label, text in choices.items())
        form = "\\boxed{{{}}}" if "\\boxed" in self.prompt else "{}"
        answers = {label: form.format(label if "{choices}" in self.prompt else text) for label, text in choices.items()}
        return Question("", self.messages(row, choices=lines), gold, answers[gold], choices, answers=answers)

    @override
    def grade(self, answer: str, question: Question) -> Grade:
        return grade_choice(answer, question.gold, question.choices, last_named=self.last_named)


def _choices(row: Mapping[str, Any], columns: str | list[str] | None) -> dict[str, str]:
    """The text of each choice by its label. A choice that is null, empty or `N/A` is left out."""
    if isinstance(columns, list):
        value: Any = [row.get(column) for column in columns]
    else:
        value = field_of(row, columns, ("choices", "options"), "choices")
    if isinstance(value, Mapping) and {*value} == {"text", "label"}:
        value = dict(zip(value["label"], value["text"], strict=True))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = dict(zip(ascii_uppercase, value, strict=False))
    items = value.items() if isinstance(value, Mapping) else ()
    found = {str(label): as_text(text, "choices") for label, text in items if text not in (None, "", "N/A")}
    if len(found) < 2:
        raise UserError("choices", f"expected a list or a mapping of at least two, got {shown_value(value)}")
    return found


def _label(value: Any, choices: Mapping[str, str]) -> str:
    """The label of the choice that is given as a label, an index or a text."""
    text = as_text(value, "answer")
    if text in choices:
        return text
    # Letters count the choices that were left out too.
    labels = ascii_uppercase if {*choices} <= {*ascii_uppercase} else [*choices]
    named = {labels[int(text)]} & {*choices} if text.isdecimal() and int(text) < len(labels) else set()
    if isinstance(value, str):
        named |= {label for label, choice in choices.items() if text in (choice, label.lower())}
    if len(named) != 1:
        expected = f"expected one of {', '.join(choices)}, an index from 0 or the text of one choice"
        raise UserError("answer", f"{expected}, got {shown_value(value)}")
    return named.pop()


class OpenBookQA(Choices):
    """OpenBookQA: 500 questions of elementary science. The prompt is the one that `MultipleChoice` trains on."""

    prompt = MultipleChoice.prompt
    hub: ClassVar = {"path": "allenai/openbookqa", "name": "main", "split": "test"}
    files = ("openbookqa.jsonl", "openbookqa/test.jsonl")
    max_new_tokens = 128


class Medical(Choices):
    """The eleven medical sources of m1, such as MedQA and MedMCQA; each is a group."""

    prompt = "{question}\n{choices}\n" + STEP_BY_STEP
    group = "key"
    hub: ClassVar = {"path": "UCSC-VLAA/m1_eval_data"}
    files = ("m1_eval_data.json", "medical/m1_eval_data.json")
    max_new_tokens = 1024

    @override
    def load(self) -> Sequence[Mapping[str, Any]]:
        # One file, a mapping from sources to rows, which are read with the source in the column `key`.
        file = self.path or dataset_file(self.hub["path"], self.files[0], self.revision)
        return Task.load(replace(self, path=file))


class PubMedQA(Choices):
    """PubMedQA: does an abstract answer its question with yes, no or maybe?

    The hub has 1000 questions. Of a local file, the 500 of `test_ground_truth.json` are asked if that file is next to
    it, as in the authors' repository.
    """

    prompt = "{context}\n\n{question}\nAnswer yes, no or maybe."
    hub: ClassVar = {"path": "qiaojin/PubMedQA", "name": "pqa_labeled", "split": "train"}
    files = ("pubmedqa/ori_pqal.json", "ori_pqal.json")
    max_new_tokens = 512

    @override
    def load(self) -> Sequence[Mapping[str, Any]]:
        rows = super().load()
        official = Path(self.path or "-").with_name("test_ground_truth.json")
        if self.path is None or not official.is_file():
            return rows
        (ids,) = refuse_broken(Rows(str(official)).load_with_broken())
        return [row for row in rows if row.get("key") in ids]

    @override
    def question(self, row: Mapping[str, Any]) -> Question:
        parts = field_of(row, None, ("context.contexts", "contexts"), "prompt")
        columns = {"question": field_of(row, None, QUESTION, "prompt"), "context": "\n".join(parts)}
        choices = {name: name for name in ("yes", "no", "maybe")}
        return super().question({**row, **columns, "choices": choices})


@dataclass(frozen=True)
class MMLUProX(Choices):
    """MMLU-ProX: questions with up to ten choices in many languages; each language is a group.

    Args:
        path: as in `Task`; in the names of local files, `{language}` is replaced by each of `groups`.
        groups: the languages, by default the paper's seven.
    """

    choices: str | list[str] | None = field(default_factory=lambda: [f"option_{i}" for i in range(10)])
    group: str | None = "language"
    groups: list[str] | None = field(default_factory=lambda: ["mr", "te", "ne", "sw", "wo", "yo", "zu"])

    hub: ClassVar = {"path": "li-lab/MMLU-ProX", "split": "test"}
    files = ("mmlu_prox/{language}.jsonl", "mmlu_prox/{language}/test.jsonl")

    @override
    def load(self) -> Sequence[Mapping[str, Any]]:
        rows: list[Mapping[str, Any]] = []
        languages = self.groups or []
        if self.path and "{language}" not in self.path and len(languages) > 1 and local_paths(self.path) is not None:
            raise UserError("path", f"expected {{language}} in the names of files, got {self.path!r}")
        for language in languages:
            path = self.path and self.path.replace("{language}", language)
            part = Task.load(replace(self, path=path, name=language))
            rows += [{**row, "language": language} for row in part]
        return rows
