"""Tasks of a user's own: rows in many shapes, names, files, and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import lit_probsft.evaluation
from lit_probsft import UserError
from lit_probsft.evaluation.evaluation import Evaluation
from lit_probsft.evaluation.generation.requests import Answer
from lit_probsft.evaluation.settings import Settings
from lit_probsft.evaluation.tasks import Choices, Math, tasks_named
from lit_probsft.evaluation.tasks.exact import Exact
from lit_probsft.evaluation.tasks.subset import chosen
from tests.evaluation.tasks.sources import EXAM, write

README = (Path(lit_probsft.evaluation.__file__).parent / "README.md").read_text()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 40))
def test_a_smaller_limit_asks_a_part_of_a_larger_one_and_every_group_alike(groups: Any, limit: int, more: int) -> None:
    few, many = chosen(groups, limit), chosen(groups, limit + more)
    assert {*few} <= {*many}
    assert few == sorted({*few})
    assert len(few) == min(limit, len(groups))
    counts = {group: sum(groups[i] == group for i in few) for group in groups}
    most = max(counts.values())
    assert all(count >= min(most - 1, groups.count(group)) for group, count in counts.items())


def test_ids_depend_neither_on_the_limit_nor_on_the_groups_asked(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": i, "kind": "odd" if i % 2 else "even"} for i in range(20)]
    path = str(write(tmp_path / "rows.jsonl", rows))
    everything = Math(path, group="kind").questions()
    assert everything[3].id == "odd/1"
    assert Math(path, group="kind", groups=["odd"]).questions() == everything[1::2]
    few = Math(path, group="kind").questions(6)
    assert [question for question in everything if question in few] == few
    assert sum(question.group == "odd" for question in few) == 3
    assert [question.id for question in Math(path, id="question").questions()] == [f"{i}?" for i in range(20)]


def test_a_limit_reads_only_the_rows_that_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    read = set()

    class Drawn(list[dict[str, Any]]):
        def __getitem__(self, index: Any) -> Any:
            read.add(index)
            return super().__getitem__(index)

        def __iter__(self) -> Any:
            return (self[index] for index in range(len(self)))

    monkeypatch.setattr(Math, "load", lambda task: Drawn({"question": "?", "answer": i} for i in range(100)))
    assert len(Math().questions(5)) == 5
    assert len(read - {0}) <= 5


CHOICES = [
    ({"choices": ["x", "y"], "answer": "B"}, "B"),
    ({"choices": ["x", "y"], "answer": "b"}, "B"),
    ({"choices": ["x", "y"], "answer": 1}, "B"),
    ({"choices": ["x", "y"], "answer": "1"}, "B"),
    ({"choices": ["x", "y"], "answer": "y"}, "B"),
    ({"choices": [3, 4.0], "answer": "4"}, "B"),
    ({"options": {"1": "x", "2": "y"}, "label": 2}, "2"),
    ({"options": {"A": None, "B": "x", "C": "y"}, "answer": 1}, "B"),
    ({"choices": ["x", "y", "", "N/A", None], "answer": "y"}, "B"),
    ({"choices": {"label": ["yes", "no"], "text": ["x", "y"]}, "answerKey": "no"}, "no"),
]


@pytest.mark.parametrize(("row", "gold"), CHOICES)
def test_choices_and_their_answer_have_many_forms(row: dict[str, Any], gold: str) -> None:
    question = Choices().question({"question": "?", **row})
    assert question.gold == gold
    assert len(question.choices) == 2


def test_a_class_attribute_is_the_default_of_a_field(tmp_path: Path) -> None:
    class Capitals(Exact):
        prompt = "What is the capital of {country}?"
        answer = "capital"

    path = str(write(tmp_path / "rows.jsonl", [{"country": "Peru", "capital": "Lima"}]))
    (question,) = Capitals(path).questions()
    assert (question.messages[0]["content"], question.gold) == ("What is the capital of Peru?", "Lima")
    assert Capitals(path, prompt="{country}?").questions()[0].messages[0]["content"] == "Peru?"


def test_the_pages_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    section = README.split("### Your own task")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+:([\w.]+))` \| `(.*?)` \|", section, re.M)
    ((code,), (names,)) = (re.findall(rf"```{kind}\n(.*?)```", section, re.S) for kind in ("python", "yaml"))
    for _, file, text in rows:
        Path(file).write_text(text)
    Path("mine.py").write_text(code)
    Path("tasks.yaml").write_text(names)
    tasks = tasks_named([*(spec for spec, _, _ in rows), "mine.Words"]) | tasks_named("tasks.yaml")
    assert [*tasks] == ["math", "exam", "capitals", "Words", "exam in Swahili"]
    golds = {name: [question.gold for question in task.questions()] for name, task in tasks.items()}
    assert golds == {
        "math": ["7"],
        "exam": ["B"],
        "capitals": [["Sucre", "La Paz"]],
        "Words": ["desserts", "reward", "evil"],
        "exam in Swahili": ["B"],
    }
    evaluation = Evaluation(tasks, Settings(), None, None)
    asked = [question for questions in evaluation.questions.values() for question in questions]
    for answers, accuracy in (([each.reference or each.gold for each in asked], 1), (["It is 9, or D."] * 7, 0)):
        rows = [evaluation.grade(Answer(index, 0, text, 1, "stop")) for index, text in enumerate(answers)]
        assert {of["accuracy"]["mean"] for of in evaluation.numbers(rows).values()} == {accuracy}
    (swahili,) = tasks["exam in Swahili"].questions()
    assert swahili.messages[0]["content"].startswith("Swali: Which is a noble gas?\nA. oxygen\n")
    # also as users leave out the file
    assert tasks_named(yaml.safe_load(names))["exam in Swahili"] == tasks["exam in Swahili"]


def init(**arguments: Any) -> list[dict[str, Any]]:
    return [{"class_path": "Math", "init_args": {"path": "rows.jsonl", **arguments}}]


MISTAKES = [
    ("math50", "tasks: no task 'math50'. Did you mean 'math500'?"),
    ("", "tasks: no task ''. There are math500, minerva_math, olympiadbench, aime24, aime25, amc23, gsm8k, medical, "
     "pubmedqa, openbookqa, mmlu_prox, figlet, Math, Choices, Exact, and my_file.MyTask."),
    ([], "tasks: expected a list of tasks, got []"),
    ([7], "tasks: expected a name, or class_path and init_args, got 7"),
    ("Math:rows.jsonl,Math:rows.jsonl", "tasks: two tasks are named 'rows'; a .yaml file can name them: `a: rows`"),
    ("nowhere.A", "tasks: cannot import 'nowhere' of 'nowhere.A': ModuleNotFoundError: No module named 'nowhere'"),
    ("json.JSONDecoder", "tasks: expected a subclass of lit_probsft.evaluation.tasks.Task, got json.JSONDecoder"),
    ("unfinished.Mine", "tasks.Mine: Mine refuses its arguments: Can't instantiate abstract class Mine with abstract "
     "methods grade, question"),
    ("nowhere.yaml", "tasks: cannot read 'nowhere.yaml': No such file or directory"),
    (init(promt="x"), "tasks.rows.promt: Math has no option 'promt'. Did you mean 'prompt'?"),
    (init(groups="a"), "tasks.rows.groups: expected list[str] | None, got 'a'"),
    (init(prompt=5), "tasks.rows.prompt: expected str, got 5"),
    ("aime24", "tasks.aime24: expected aime24.jsonl or math/aime24.jsonl or aime24/test.jsonl in 'data', found none"),
    ("Math", "path: expected the rows of Math: a file, or a data set on the hub"),
    (init(group="kind"), "group: no column 'kind' among 'question', 'answer', 'name'."),
    (init(groups=["a"]), "groups: expected none without a column `group`, got 'a'."),
    (init(group="name", groups=["annn"]), "groups: expected some of ann, bob, got 'annn'. Did you mean 'ann'?"),
    (init(id="nme"), "id: no column 'nme' among 'question', 'answer', 'name'. Did you mean 'name'?"),
    (init(id="name"), "id: expected another id for each question, got 'ann' 2 times"),
    (init(answer="gold"), "answer: no column 'gold' among 'question', 'answer', 'name' (row 0, counted from 0)"),
    (init(prompt="{qestion}"), "prompt: no column 'qestion' among 'question', 'answer', 'name'. Did you mean "
     "'question'? (row 0, counted from 0)"),
    ("Choices:rows.jsonl", "choices: no column 'choices' among 'question', 'answer', 'name' (row 0, counted from 0)"),
    ("Choices:one.jsonl", "choices: expected a list or a mapping of at least two, got {'A': 'x'} "
     "(row 0, counted from 0)"),
    ("Choices:exam.jsonl", "answer: expected one of A, B, C, D, an index from 0 or the text of one choice, got 'E' "
     "(row 0, counted from 0)"),
    ("Exact:null.jsonl", "answer: column 'answer' is null (row 0, counted from 0)"),
    ("Choices:uneven.jsonl", "Choices.question raised ValueError: zip() argument 2 is longer than argument 1 "
     "(row 0, counted from 0)"),
    ("mmlu_prox:exam.jsonl", "path: expected {language} in the names of files, got 'exam.jsonl'"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_have_one_message(spec: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "unfinished.py").write_text("from lit_probsft.evaluation.tasks import Task\nclass Mine(Task): pass\n")
    write(tmp_path / "rows.jsonl", [{"question": "1+1?", "answer": 2, "name": name} for name in ("ann", "bob", "ann")])
    write(tmp_path / "one.jsonl", [{"question": "?", "choices": ["x"], "answer": 0}])
    write(tmp_path / "exam.jsonl", [{**EXAM, "answer_idx": "E"}])
    write(tmp_path / "null.jsonl", [{"question": "?", "answer": None}])
    write(tmp_path / "uneven.jsonl", [{"question": "?", "choices": {"label": ["A"], "text": ["x", "y"]}}])
    with pytest.raises(UserError) as error:
        for task in tasks_named(spec, "data").values():
            task.questions()
    assert str(error.value).rstrip() == message.rstrip()


def test_a_missing_data_folder_is_named() -> None:
    with pytest.raises(UserError, match=r"^data_dir: no such folder: 'nowhere'$"):
        tasks_named("math500", "nowhere")
