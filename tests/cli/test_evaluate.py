"""`evaluate` as a user runs it: a table, a results file, and a second call that makes no answer again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.cli.commands import main
from lit_probsft.data import ByteTokenizer
from lit_probsft.evaluation.models import base_of
from tests import tiny
from tests.evaluation.scene import outcome


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that answers at random, and questions, in the working directory."""
    monkeypatch.chdir(tmp_path)
    tiny.model(seed=7, initializer_range=0.5).save_pretrained("m")
    ByteTokenizer().load(list).save_pretrained("m")
    rows = [{"question": f"{number}?", "answer": chr(97 + number)} for number in range(6)]
    rows[5]["question"] *= 200
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def evaluate(*flags: Any) -> Any:
    words = ["m", "--tasks", "Exact:q.jsonl", "--out", "results/x.json", "--device", "cpu", "--max-new-tokens", 8]
    return main(["evaluate", *map(str, [*words, *flags])])


def test_a_second_call_only_makes_the_numbers_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluate("--n", 2, "--temperature", 1, "--likelihood")
    said = capsys.readouterr()
    assert said.out.startswith("task  questions  accuracy")
    assert said.out.splitlines()[1].split()[:2] == ["q", "6"]
    assert "prompts longer than the model's context, which count as wrong: 1" in said.out
    assert "results/x.json: these numbers; results/x: the answers" in said.out
    assert said.err.startswith("0 of 10 answers\n")
    written = json.loads(Path("results/x.json").read_text())
    assert written["settings"]["n"] == 2
    assert written["tasks"]["q"]["likelihood"]["tokens"] > 5
    second = evaluate("--n", 2, "--temperature", 1, "--likelihood")
    assert "of 10 answers" not in capsys.readouterr().err
    assert outcome(first) == outcome(second) == outcome(written)


def test_the_papers_protocol_decides_prompts_and_sampling(folder: Path) -> None:
    rows = [{"question": "a?", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "B"}] * 2
    Path("o.jsonl").write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i, row in enumerate(rows)))
    words = ["m", "--tasks", "OpenBookQA:o.jsonl", "--out", "results/p.json", "--device", "cpu", "--paper"]
    found = main(["evaluate", *words])
    assert found["settings"]["paper"]
    assert found["settings"]["max_new_tokens"] == 128
    asked = json.loads(Path("results/p/questions.jsonl").read_text().splitlines()[0])["prompt"]
    assert "Please complete the following multiple choice question." in asked


def test_forgetting_is_measured_once_and_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, checked = [], []

    def measure(place: str, base: str, tasks: list[str], **options: Any) -> dict[str, Any]:
        calls.append((place, base, tasks, options["limit"], options["chat_template"]))
        return {task: {"difference": 0.5} for task in tasks}

    monkeypatch.setattr("lit_probsft.evaluation.retention.measure", measure)
    monkeypatch.setattr("lit_probsft.evaluation.retention.load_tasks", checked.append)
    for tasks in ("ifeval", "ifeval,arc", "ifeval,arc"):
        found = evaluate("--retention", tasks, "--base", "b", "--limit", 3)
    assert calls == [("m", "b", ["ifeval"], 3, False), ("m", "b", ["arc"], 3, False)]
    assert checked == [["ifeval"], ["arc"]]
    evaluate("--limit", 3)
    kept = json.loads(Path("results/x.json").read_text())["retention"]
    assert list(kept) == list(found["retention"]) == ["ifeval", "arc"]
    again = evaluate("--retention", "ifeval", "--retention-chat", "--base", "b", "--limit", 3)
    assert list(again["retention"]) == ["ifeval"]  # results without the template do not count
    assert calls[2:] == [("m", "b", ["ifeval"], 3, True)]


def test_a_run_and_adapters_name_their_base(tmp_path: Path) -> None:
    files = {"a/adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "org/a"}}
    files["r/run.json"] = {"model": {"name": "org/b"}}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(content))
    assert base_of(str(tmp_path / "a")) == "org/a"
    for name in ("r", "r/hf", "r/checkpoints/last.ckpt"):
        assert base_of(str(tmp_path / name)) == "org/b"
    assert base_of(str(tmp_path)) is None


@pytest.mark.slow
def test_processes_share_the_questions(folder: Path) -> None:
    sampling = ("--n", 2, "--temperature", 1)
    alone = evaluate(*sampling)
    assert outcome(evaluate(*sampling, "--out", "results/y.json", "--devices", 2)) == outcome(alone)


@pytest.mark.slow
def test_a_model_may_be_spread_over_devices(folder: Path) -> None:
    spread = evaluate("--device-map", "auto", "--dtype", "float32", "--out", "results/y.json")
    assert outcome(spread) == outcome(evaluate())
