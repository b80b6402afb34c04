"""Makes results files for tests, with grades drawn at random."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_probsft.evaluation.numbers import mean_over_tasks, summarize
from lit_probsft.evaluation.results import write_results
from lit_probsft.evaluation.tasks.base import Question

SETTINGS = {"n": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0, "system": None, "limit": None, "greedy": False}


def task(grades: Sequence[Sequence[int]], group: Callable[[int], str | None] = lambda i: None) -> dict[str, Any]:
    """The numbers of a task from the grades of each question."""
    questions = [Question(str(i), [], "gold", group=group(i)) for i in range(len(grades))]
    settings = {"source": "s", "rows_fingerprint": "f", "prompt_sha256": "p", "max_new_tokens": 9, "grader": 1}
    return {"settings": settings, "likelihood": None, **summarize(rows(grades), questions)}


def rows(grades: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    same = {"tokens": 1, "finish_reason": "stop", "reason": "why", "scores": {}}
    return [
        {
            "question": str(i),
            "sample": sample,
            "text": f"answer {i}",
            "correct": bool(grade),
            "extracted": str(grade),
            **same,
        }
        for i, of_question in enumerate(grades)
        for sample, grade in enumerate(of_question)
    ]


def results(name: str = "m", settings: dict[str, Any] | None = None, **tasks: dict[str, Any]) -> dict[str, Any]:
    """The content of a results file."""
    mean = mean_over_tasks([numbers["accuracy"] for numbers in tasks.values()])
    model = {"name": name, "fingerprint": "x"}
    return {"format": 1, "model": model, "settings": {**SETTINGS, **(settings or {})}, "tasks": tasks, "mean": mean}


def draw_grades(seed: int, count: int, p: float, n: int = 1) -> list[list[int]]:
    drawn: list[list[int]] = np.random.default_rng(seed).binomial(1, p, (count, n)).tolist()
    return drawn


def write_evaluation(path: Path, grades: Sequence[Sequence[int]], text: str = "", **more: Any) -> None:
    """A results file of one task with the answers next to it. `text` is added to all texts."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    answers = [{"task": "sums", **row, "text": row["text"] + text} for row in rows(grades)]
    asked = [{"task": "sums", "question": str(i), "prompt": f"ask {i}{text}", "gold": "1"} for i in range(len(grades))]
    for name, lines in (("predictions", answers), ("questions", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    write_results(path, {**results(sums=task(grades)), **more})
