"""Reads and writes results files. Their schema is in README.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError, first_line
from lit_probsft.storage.atomic import read_object, write_text

FORMAT = 1
"""The version of the schema."""

Results = dict[str, Any]


def write_results(path: Path, content: Results, argument: str = "--out") -> None:
    """Write a results file atomically, each list of grades on one line.

    Raises:
        UserError: the file could not be written.
    """
    text = json.dumps({"format": FORMAT, **content}, indent=1, ensure_ascii=False, allow_nan=False)
    # A text in JSON contains no line breaks, so this only changes lists.
    lines = re.sub(r"\[\n\s*((?:\d+,\s+)*\d+)\n\s*\]", lambda match: f"[{' '.join(match[1].split())}]", text)
    write_text(path, lines + "\n", argument)


def read_results(path: Path, argument: str = "") -> Results:
    """The content of a results file.

    Raises:
        UserError: it does not exist, is damaged, or is another file.
    """
    argument = argument or str(path)
    try:
        content = read_object(path)
    except (OSError, ValueError) as error:
        unfinished = not path.exists() and (folder_of(path) / "predictions.jsonl").exists()
        problem = "the evaluation has not ended; the same command continues it" if unfinished else first_line(error)
        raise UserError(argument, f"expected a results file of evaluate: {problem}") from error
    if content.get("format", FORMAT) != FORMAT:
        problem = f"expected a results file of format {FORMAT}, got format {content['format']!r}"
        raise UserError(argument, problem)
    try:
        _check(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        detail = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(argument, f"not a results file of evaluate: {detail}") from error
    return content


def results_files(paths: Iterable[Path]) -> dict[str, Path]:
    """The results files at some paths, each once, by label: the name of the file, or its path where names are the same.

    Args:
        paths: results files, or folders as for `results_in`.

    Raises:
        UserError: a folder has no results file.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        inside = results_in(path) if path.is_dir() else [path]
        if not inside:
            raise UserError(str(path), "expected a results file, or a folder with results files, found none in it")
        for file in inside:
            files.setdefault(file.resolve(), file)
    names = [file.stem for file in files.values()]
    return {file.stem if names.count(file.stem) == 1 else str(file.with_suffix("")): file for file in files.values()}


def results_in(folder: Path) -> list[Path]:
    """The results files in a folder, and those in its folder `results`: JSON files with the answers next to them."""
    files = sorted([*folder.glob("*.json"), *folder.glob("results/*.json")])
    return [file for file in files if (folder_of(file) / "predictions.jsonl").exists()]


def folder_of(path: Path) -> Path:
    """The folder with the answers of a results file."""
    return path.with_suffix("")


def _check(content: Results) -> None:
    """Read everything that other files expect in a results file. Whatever it raises, the file is damaged."""
    content["format"], content["model"]["name"], content["settings"].items()
    if not content["tasks"]:
        raise ValueError("it has no task")
    for found in (content.get("retention") or {}).values():
        found.items()
    for name, task in content["tasks"].items():
        task["questions"] + 0, task["settings"].items()
        grades, scores, greedy = task["grades"], task.get("scores") or {}, task.get("greedy")
        numbers = [task["accuracy"], *scores.values(), *filter(None, (greedy, task.get("group_mean")))]
        values = [(number["mean"], number["low"], number["high"], number["se"] or 0) for number in numbers]
        if not all(0 <= value <= 1 for number in values for value in number):
            raise ValueError(f"a number of {name} is not from 0 to 1")
        if not grades or not all(of_question and {*of_question} <= {0, 1} for of_question in grades.values()):
            raise ValueError(f"a grade of {name} is missing, or is neither 0 nor 1")
        for metric in [*scores, *(["greedy"] if greedy else [])]:
            sum(task["values"][metric][question] for question in grades)
        for group in (task.get("groups") or {}).values():
            sum(sum(grades[question]) for question in group["members"])
