"""A model learns a task: fit, evaluate the model before and after, compare."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft import evaluation
from lit_probsft.cli import main
from lit_probsft.data import ByteTokenizer
from tests import tiny

PAGE = Path(evaluation.__file__).parent / "README.md"
SUBSTITUTES = str.maketrans("0123456789", "3706195284")


def write_numbers(path: Path, numbers: list[str]) -> None:
    """The task: the substitute of the last digit."""
    rows = [{"question": number, "answer": number[-1].translate(SUBSTITUTES)} for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_base() -> None:
    """A model with random weights, as a folder."""
    tokenizer = ByteTokenizer().load(list)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    fields: dict[str, Any] = {**sizes, "tie_word_embeddings": True, "initializer_range": 0.1}
    tiny.source(**fields).load(tokenizer, torch.float32).save_pretrained("base")
    tokenizer.save_pretrained("base")


FIT = [
    "fit", "--name=tuned", "--model.model=base", "--model.objective=NLL", "--model.optimizer.lr=0.01",
    "--data.train=train.jsonl", "--data.train.prompt=question", "--data.train.response=answer",
    "--data.batch_size=64", "--trainer.max_steps=36", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false", "--evaluation.tasks=Exact:test.jsonl",
    "--evaluation.limit=20", "--evaluation.max_new_tokens=4",
]  # fmt: skip


def test_a_model_that_learns_a_task_is_better_at_it_and_compare_is_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = [f"{number:03}" for number in range(1000)]
    random.Random(0).shuffle(numbers)
    write_numbers(Path("train.jsonl"), numbers[:900])
    write_numbers(Path("test.jsonl"), numbers[900:960])
    save_base()

    main(FIT)
    assert "test 0.0 -> " in capsys.readouterr().out

    flags = ["--tasks", "Exact:test.jsonl", "--max-new-tokens", "4", "--likelihood"]
    accuracy = {}
    for name, model in (("base", "base"), ("tuned", "runs/tuned")):
        results = main(["evaluate", model, *flags, "--out", f"results/{name}.json"])
        accuracy[name] = results["tasks"]["test"]["accuracy"]["mean"]
    assert accuracy["base"] <= 0.1
    assert accuracy["tuned"] >= 0.8

    # The page on evaluation documents everything in a results file.
    documented = {*re.findall(r'"(\w+)":', PAGE.read_text().split("results/X.json:\n")[1].split("\n## ")[0])}
    written = json.loads(Path("results/tuned.json").read_text())
    task = written["tasks"]["test"]
    parts = ("settings", "likelihood", "accuracy", "tokens")
    for part in (written, written["model"], written["settings"], task, *(task[name] for name in parts)):
        assert part.keys() <= documented

    # The command and the run give the same answers.
    during, after = (
        {row["question"]: row["text"] for row in map(json.loads, Path(path).read_text().splitlines())}
        for path in ("runs/tuned/evaluation/step-00000036.jsonl", "results/tuned/predictions.jsonl")
    )
    assert len(during) == 20
    assert during.items() <= after.items()

    capsys.readouterr()
    compared = main(["compare", "results/base.json", "results/tuned.json"])
    (difference,) = (entry for entry in compared.entries if entry.task == "test" and entry.difference is not None)
    assert difference.difference_low > 0.5
    said = capsys.readouterr().out
    assert "test" in said
    assert "tuned" in said
