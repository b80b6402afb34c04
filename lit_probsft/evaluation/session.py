"""One evaluation from its questions to its results file, continued from where an earlier one stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lit_probsft.errors import UserError
from lit_probsft.evaluation.answering import answer_all
from lit_probsft.evaluation.evaluation import Evaluation
from lit_probsft.evaluation.results import read_results, write_results
from lit_probsft.evaluation.store import Store
from lit_probsft.evaluation.subject import Subject
from lit_probsft.parallel.stopping import StoppedBySignal
from lit_probsft.run.facts import versions

_RETENTION = ("retention", "retention_settings")
_OF_SAMPLES = ("seed", "top_p")


def evaluate(
    name: str,
    subject: Subject,
    evaluation: Evaluation,
    store: Store,
    *,
    base: str | None = None,
    likelihood: bool = False,
    paper: bool = False,
) -> dict[str, Any]:
    """Make the answers that are missing, and write the results file; returns its content.

    Args:
        name: of the model.
        subject: the model.
        evaluation: the questions.
        store: the files, which the caller closes.
        base: the model before training, if it is known.
        likelihood: also measure how probable the references and choices are.
        paper: also compute the means that the paper prints.

    Raises:
        UserError: the files belong to another evaluation, or cannot be written; or the backend fails.
        StoppedBySignal: on SIGTERM and Ctrl-C. All answers that were graded are stored.
    """
    from lit_probsft.evaluation.numbers import mean_over_tasks
    from lit_probsft.evaluation.paper import paper_means

    model = {"name": name, "fingerprint": subject.settings["weights"] or subject.settings.get("server")}
    try:
        store.open(model, {**subject.settings, **_depends_on(evaluation)}, evaluation.lines, evaluation.grade_again)
        if evaluation.keys() <= store.answers.objects.keys():
            rank_zero_info(f"all answers are in {store.answers.path}; only the numbers are made again")
        start = time.monotonic()
        tokens = answer_all(evaluation, subject.backend, store)
        seconds = time.monotonic() - start
        tasks = evaluation.numbers(store.answers.objects.values())
        for task, measured in _likelihoods(subject, evaluation, store) if likelihood else ():
            tasks[task]["likelihood"] = measured
        before = _previous(store.out)
        made: dict[str, Any] = {"seconds": round(seconds, 1), "tokens_per_second": round(tokens / seconds, 1)}
        if not tokens:  # those of the call that made the answers
            made = {name: before[name] for name in ("backend", *made) if name in before}
        results = {
            "model": {**model, "base": base},
            "settings": {**_common(evaluation), "paper": paper},
            "backend": made.get("backend") or dict(subject.backend.describe()),
            "versions": versions(),
            "started": store.started,
            "seconds": made.get("seconds"),
            "tokens_per_second": made.get("tokens_per_second"),
            "tasks": tasks,
            "mean": mean_over_tasks([numbers["accuracy"] for numbers in tasks.values()]),
            **({"paper_means": paper_means(tasks)} if paper else {}),
            **{name: before[name] for name in _RETENTION if name in before},
        }
        write_results(store.out, results)
        return results
    except (KeyboardInterrupt, StoppedBySignal) as stop:
        number = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        keys = evaluation.keys()
        stored = f"{len(keys & store.answers.objects.keys())} of {len(keys)} answers are in {store.answers.path}"
        command = f"the same command {'without --overwrite ' if store.overwrite else ''}goes on from there"
        message = f"stopped by {number.name}; {stored}, and {command}"
        raise StoppedBySignal(message, together=False, number=number) from stop


def add_retention(
    results: dict[str, Any], store: Store, place: str, base: str, tasks: Sequence[str], **options: Any
) -> None:
    """Measure what the model has forgotten, except what its results file has, and write it there.

    Args:
        results: of `evaluate`, which are extended.
        store: the files.
        place: hub id or folder of the model.
        base: the model before training.
        tasks: of lm-eval.
        options: of `retention.measure`, `limit` and `chat_template` among them.

    Raises:
        UserError: lm-eval cannot run a task.
    """
    from lit_probsft.evaluation.retention import measure

    settings = {"base": base, "limit": options["limit"], "chat_template": options["chat_template"]}
    known = _known_retention(results, settings)
    if missing := [task for task in tasks if task not in known]:
        known = {**known, **measure(place, base, missing, **options)}
    results |= {"retention": known, "retention_settings": settings}
    write_results(store.out, results)


def check_retention(store: Store, tasks: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Load the tasks of lm-eval that `add_retention` will run, to find mistakes before the answers are made.

    Args:
        store: the files.
        tasks: of lm-eval.
        settings: `base`, `limit` and `chat_template`. Results of other settings do not count.

    Raises:
        UserError: as `retention.load_tasks`.
    """
    from lit_probsft.evaluation.retention import load_tasks

    known = _known_retention(_previous(store.out), settings)
    if missing := [task for task in tasks if task not in known]:
        load_tasks(missing)


def _known_retention(results: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = results.get("retention", {}) if results.get("retention_settings") == settings else {}
    return known


def _common(evaluation: Evaluation) -> dict[str, Any]:
    """The settings of all tasks; None where they differ."""
    first, *others = map(asdict, evaluation.settings.values())
    return {name: value if all(other[name] == value for other in others) else None for name, value in first.items()}


def _depends_on(evaluation: Evaluation) -> dict[str, Any]:
    return {
        f"{field} of {task}": getattr(settings, field) if settings.temperature or field not in _OF_SAMPLES else None
        for task, settings in evaluation.settings.items()
        for field in ("temperature", "system", "template_options", "max_new_tokens", *_OF_SAMPLES)
    }


def _likelihoods(subject: Subject, evaluation: Evaluation, store: Store) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure the likelihoods that are missing; the numbers of each task."""
    from lit_probsft.evaluation.likelihood import likelihoods, summarize_likelihoods

    found = store.likelihoods.objects
    for task, settings in evaluation.settings.items():
        items = [item for item in evaluation.conversations(task) if (task, item[1].id) not in found]
        options = settings.template_options
        for row in likelihoods(subject.model, subject.tokenizer, items, template_options=options):
            store.likelihoods.append({"task": task, **row})
        names = [(task, question.id) for question in evaluation.questions[task]]
        rows = [found[name] for name in names if name in found]
        yield task, summarize_likelihoods(rows, evaluation.questions[task])


def _previous(path: Path) -> dict[str, Any]:
    """The results file of an earlier call; empty if there is none that can be read."""
    try:
        return read_results(path)
    except UserError:
        return {}
