"""Every benchmark turns its rows, on the hub and in local files, into questions that it grades."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import huggingface_hub
import pytest

from lit_probsft.data import MultipleChoice
from lit_probsft.evaluation.tasks import tasks_named
from lit_probsft.evaluation.tasks.registry import BENCHMARKS, READY
from tests.evaluation.tasks.sources import EXAM, PUZZLE, SCIENCE, SHAPES, STUDY, SUM, WOLOF, Shape, write


def test_every_benchmark_has_rows_here_and_is_short() -> None:
    assert {shape.task.partition("/")[0] for shape in SHAPES} == {*BENCHMARKS}
    assert all(len(inspect.getsource(task).splitlines()) <= 30 for task in (*BENCHMARKS.values(), *READY.values()))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.task}-{shape.file}")
def test_a_benchmark_asks_and_grades_its_rows(shape: Shape, tmp_path: Path) -> None:
    path = write(tmp_path / (shape.file or "rows.jsonl"), shape.rows)
    named = shape.task if shape.file else f"{shape.task}:{path}"
    task = tasks_named(named, tmp_path)[shape.task]
    questions = task.questions()
    assert [question.gold for question in questions] == shape.golds
    assert len({question.id for question in questions}) == len(questions)
    rows = shape.rows if isinstance(shape.rows, list) else json.loads(json.dumps(shape.rows)).values()
    asked = [row for part in rows for row in (part if isinstance(part, list) else [part])]
    for row, question in zip(asked, questions, strict=True):
        (message,) = question.messages
        text = next(row[key] for key in ("question", "problem", "QUESTION", "question_stem", "prompt") if key in row)
        assert text in message["content"]
        assert all(choice in message["content"] for choice in question.choices.values())
        right = task.grade(question.reference, question)
        assert right.correct, right
        answers = {question.gold: question.reference, "": "no idea, perhaps 12345", **question.answers}
        assert answers[question.gold] == question.reference
        assert [label for label in answers if task.grade(answers[label], question).correct] == [question.gold]


def test_references_end_with_the_answer_that_the_rows_give(tmp_path: Path) -> None:
    rows = [
        {"problem": "?", "answer": "7"},
        {"problem": "?", "answer": "7", "solution": r"So \boxed{7}."},
        {"problem": "?", "answer": "7", "solution": r"So $n = \boxed{n=7}$."},
        {"problem": "?", "answer": "#### 3? No.\n#### 7"},
    ]
    questions = tasks_named(f"math500:{write(tmp_path / 'rows.jsonl', rows)}")["math500"].questions()
    assert [question.reference for question in questions] == [
        r"\boxed{7}",
        r"So \boxed{7}.",
        "So $n = \\boxed{n=7}$.\n\\boxed{7}",
        "#### 3? No.\n#### 7",
    ]


def test_openbookqa_is_asked_as_multiple_choice_trains_it(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [SCIENCE])
    (question,) = tasks_named(f"openbookqa:{path}")["openbookqa"].questions()
    trained = MultipleChoice(str(path)).conversation(SCIENCE)
    assert [*question.messages, {"role": "assistant", "content": question.reference}] == trained


def test_each_source_of_medical_is_a_group_and_can_be_asked_alone(tmp_path: Path) -> None:
    write(tmp_path / "m1_eval_data.json", {"NEJM": [EXAM, EXAM], "Lancet": [EXAM]})
    everything = tasks_named("medical", tmp_path)["medical"].questions()
    assert [(question.id, question.group) for question in everything] == [
        ("NEJM/0", "NEJM"),
        ("NEJM/1", "NEJM"),
        ("Lancet/0", "Lancet"),
    ]
    assert tasks_named("medical/Lancet", tmp_path)["medical/Lancet"].questions() == everything[2:]


def test_medical_is_one_file_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m1_eval_data.json", {"NEJM": [EXAM], "Lancet": [EXAM]})
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **options: asked.append(args) or str(path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert len(tasks_named("medical")["medical"].questions()) == 2
    assert asked == [("UCSC-VLAA/m1_eval_data", "m1_eval_data.json")]


def test_the_languages_of_mmlu_prox_are_groups(tmp_path: Path) -> None:
    for language in ("wo", "sw"):
        write(tmp_path / "mmlu_prox" / f"{language}.jsonl", [WOLOF])
    spec = {"two": {"class_path": "mmlu_prox", "init_args": {"groups": ["sw", "wo"]}}}
    questions = tasks_named(spec, tmp_path)["two"].questions()
    assert [(question.id, question.group) for question in questions] == [("sw/70", "sw"), ("wo/70", "wo")]
    assert [*questions[0].choices] == [*"ABCDEFGH"]


def test_pubmedqa_asks_the_official_half_if_its_file_is_there(tmp_path: Path) -> None:
    write(tmp_path / "pubmedqa" / "ori_pqal.json", {"11": STUDY, "12": STUDY, "13": STUDY})
    write(tmp_path / "pubmedqa" / "test_ground_truth.json", {"13": "yes", "11": "yes"})
    questions = tasks_named("pubmedqa", tmp_path)["pubmedqa"].questions()
    assert [question.id for question in questions] == ["11", "13"]


def test_figlet_asks_the_papers_test_rows_and_scores_both_similarities(tmp_path: Path) -> None:
    source = tasks_named("figlet")["figlet"].source()
    assert (source["start"], source["count"]) == (40000, 5000)
    task = tasks_named(f"figlet:{write(tmp_path / 'rows.jsonl', [PUZZLE])}")["figlet"]
    (question,) = task.questions()
    assert {*task.grade("WORK", question).scores} == {"jaro_winkler", "jaro_winkler_paper"}


def test_olympiadbench_allows_the_error_of_its_row(tmp_path: Path) -> None:
    rows = [{"id": 1, "question": SUM, "final_answer": ["4.2"], "error": "1e-1"}]
    rows.append({**rows[0], "id": 2, "error": None})
    task = tasks_named("olympiadbench", write(tmp_path / "olympiadbench.jsonl", rows).parent)["olympiadbench"]
    assert [task.grade(r"\boxed{4.25}", question).correct for question in task.questions()] == [True, False]
