"""The section of a run's page about its evaluations: grades, what was gained and forgotten, answers that changed."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lit_probsft.analysis.page import escape, format_value, table
from lit_probsft.evaluation.comparison import compare, values_of
from lit_probsft.evaluation.comparison_forms import HEADS, rows_of
from lit_probsft.evaluation.results import Results, folder_of, read_results, results_files

SHOWN = 20
"""The most changed answers of a task that are shown, in each direction."""

_Key = tuple[str, str]
"""A task and a question."""


def grades_section(files: Sequence[Path], against: Path | None = None) -> list[str]:
    """Pieces of HTML.

    Args:
        files: results files, or folders with results files.
        against: the results file of the model before training. Answers that changed are those of the last file.

    Raises:
        UserError: a file cannot be read.
    """
    places = results_files([*([against] if against else []), *files])
    results = {label: read_results(file) for label, file in places.items()}
    comparison = compare(results, different=True)
    body = ["<h2>Grades</h2>", table(HEADS, [list(map(escape, row)) for row in rows_of(comparison)])]
    body += [f"<p>{escape(note)}</p>" for note in comparison.notes]
    body.append(table(("task", "result", *_DETAILS, "tokens", "pass@n", "majority of n"), _details(results)))
    for label, content in results.items():
        if content.get("retention"):
            body += [f"<h3>What {escape(label)} retains</h3>", _retention(content["retention"])]
    if against and len(places) > 1:
        (before, old), *_, (after, new) = places.items()
        body.append(f"<h3>Answers that changed from {escape(before)} to {escape(after)}</h3>")
        folders = {before: folder_of(old), after: folder_of(new)}
        body += _changed(folders, results[before]["tasks"], results[after]["tasks"])
    return body


_DETAILS = ("questions", "answers", "cut_off", "no_answer", "prompt_too_long")


def _details(results: Mapping[str, Results]) -> Iterator[list[str]]:
    for name in dict.fromkeys(name for content in results.values() for name in content["tasks"]):
        for label, content in results.items():
            if task := content["tasks"].get(name):
                best = [[*(task.get(kind) or {"": None}).values()][-1] for kind in ("pass", "majority")]
                means = [number and number["mean"] for number in (task.get("tokens"), *best)]
                yield [escape(format_value(cell)) for cell in (name, label, *map(task.get, _DETAILS), *means)]


def _retention(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    heads = ("metric", "base", "tuned", "difference", "se", "n")
    rows = [[name, *(format_value(found.get(head)) for head in heads)] for name, found in tasks.items()]
    return table(("task", *heads), [list(map(escape, row)) for row in rows])


def _changed(folders: Mapping[str, Path], before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Questions that had less than half of their answers right and now have at least half, and the reverse."""
    changes: dict[tuple[str, bool], list[str]] = {}
    for task in [task for task in before if task in after]:
        old, new = (values_of(tasks[task], "accuracy") for tasks in (before, after))
        change = {name: new[name] - old[name] for name in old if name in new and (old[name] < 0.5) != (new[name] < 0.5)}
        most = sorted(change, key=lambda name: -abs(change[name]))
        changes |= {(task, gained): [name for name in most if (change[name] > 0) == gained] for gained in (True, False)}
    shown = {(task, name): gained for (task, gained), names in changes.items() for name in names[:SHOWN]}
    questions = dict(_lines(next(iter(folders.values())) / "questions.jsonl", shown))
    answers = {
        label: {
            key: line
            for key, line in _lines(folder / "predictions.jsonl", shown)
            if line.get("correct") is (shown[key] == now)
        }
        for (label, folder), now in zip(folders.items(), (False, True), strict=True)
    }
    for (task, gained), names in changes.items():
        title = "from wrong to right" if gained else "from right to wrong"
        yield f"<p><b>{escape(task)}, {title}: {len(names)} of {before[task]['questions']} questions</b></p>"
        for name in names[:SHOWN]:
            found = {label: lines.get((task, name)) for label, lines in answers.items()}
            yield _details_of(name, questions.get((task, name)), found)
        if len(names) > SHOWN:
            yield f"<p>And {len(names) - SHOWN} more.</p>"


def _lines(file: Path, wanted: Container[_Key]) -> Iterator[tuple[_Key, dict[str, Any]]]:
    """The lines about some questions. Lines that cannot be read are skipped."""
    with suppress(FileNotFoundError), file.open(encoding="utf-8", errors="replace") as texts:
        for text in texts:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                line = json.loads(text)
                if (key := (line["task"], line["question"])) in wanted:
                    yield key, line


def _details_of(name: str, question: dict[str, Any] | None, answers: Mapping[str, dict[str, Any] | None]) -> str:
    """A question and its answers by the label of their results, collapsed."""
    prompt, gold = ((question or {}).get(name, "unknown") for name in ("prompt", "gold"))
    parts = {"prompt": prompt, "gold answer": gold}
    for label, answer in answers.items():
        grade = f", graded {answer.get('extracted')!r}, {answer.get('reason')}" if answer else ""
        parts[f"answer in {label}{grade}"] = answer.get("text") if answer else "unknown"
    texts = "".join(f"<p>{escape(head)}</p><pre>{escape(_cut(str(text)))}</pre>" for head, text in parts.items())
    return f"<details><summary>{escape(name)}: {escape(_cut(str(prompt), 120))}</summary>{texts}</details>"


def _cut(text: str, longest: int = 8000) -> str:
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest} more characters)"
