"""Compares results files: differences of the same questions, with intervals and tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lit_probsft.errors import UserError
from lit_probsft.evaluation.numbers import Values, clustered_error, mean_over_tasks
from lit_probsft.evaluation.paper_rows import MATH, paper_rows
from lit_probsft.evaluation.results import Results

RESAMPLES = 10_000
MEAN = "mean"
"""The name of the mean over tasks."""

FREE = {"seed", "greedy", "limit", "source"}
"""Settings that may differ. The questions of `limit` and `source` are compared, and `max_new_tokens` of each task."""


@dataclass
class Difference:
    """A paired difference to the first results file.

    Attributes:
        questions: number of questions that both have.
        mean: of the differences.
        interval: 95%, by the bootstrap; None for a single cluster of questions.
        p: of the hypothesis that there is none, adjusted for all tests of the comparison; None if it is not defined.
    """

    questions: int
    mean: float
    interval: tuple[float, float] | None
    p: float | None


@dataclass
class Entry:
    """A number of one results file, or of the paper.

    Attributes:
        task: the task's name, or `MEAN`.
        metric: `accuracy`, `greedy` or a score.
        label: of the results file, or of the paper's row.
        mean: from 0 to 1.
        interval: 95%; None in the paper's rows.
        questions: their number.
        difference: to the first file; None for that file, and where there is nothing to pair.
    """

    task: str
    metric: str
    label: str
    mean: float
    interval: tuple[float, float] | None = None
    questions: int | None = None
    difference: Difference | None = None


@dataclass(frozen=True)
class Comparison:
    """Entries by task and metric, in the order of the files, and notes that belong to them."""

    entries: list[Entry]
    notes: list[str]


def compare(results: Mapping[str, Results], *, different: bool = False) -> Comparison:
    """Compare results files with the first one.

    Args:
        results: by label.
        different: also compare what was measured differently.

    Raises:
        UserError: a file has no task in common with the first, or was measured differently.
    """
    first, *others = results
    tasks, notes = results[first]["tasks"], []
    for label in others:
        if not (different or results[label]["tasks"].keys() & tasks.keys()):
            got = ", ".join(results[label]["tasks"])
            raise UserError(label, f"expected a task that {first} has ({', '.join(tasks)}), got {got}")
        if found := "; ".join(measured_differently(results[first], results[label])):
            if not different:
                raise UserError(label, f"measured differently from {first}: {found}. Compare anyway with --different")
            notes.append(f"{label} was measured differently from {first}: {found}.")
    names = list(dict.fromkeys(task for content in results.values() for task in content["tasks"]))
    shared = [name for name in names if all(name in content["tasks"] for content in results.values())]
    entries: list[Entry] = []
    for name in names:
        for metric in dict.fromkeys(metric for content in results.values() for metric in _numbers(content, name)):
            entries += _entries(results, [name], metric)
    if len(shared) > 1:
        entries += _entries(results, shared, "accuracy")
        notes.append(f"{MEAN} is the unweighted mean over {', '.join(shared)}.")
    tests = _adjust([entry.difference for entry in entries if entry.difference])
    if others:
        notes.append(f"Intervals are 95%. Differences are to {first}, over the same questions.")
        notes.append(
            f"p is of McNemar's exact test for single answers, otherwise of a t-test; Holm's for {tests} tests."
        )
    return Comparison(entries, notes)


def measured_differently(first: Results, other: Results) -> Iterator[str]:
    """What differs in the measurement of the tasks that both have: the setting, and both values."""
    both = [name for name in other["tasks"] if name in first["tasks"]]
    pairs = [("", first["settings"], other["settings"])]
    pairs += [(f"{name} ", *(content["tasks"][name]["settings"] for content in (first, other))) for name in both]
    for where, a, b in pairs:
        for key in dict.fromkeys([*a, *b]):
            if key not in FREE and where + key != "max_new_tokens" and a.get(key) != b.get(key):
                yield f"{where}{key} is {_short(b.get(key))}, not {_short(a.get(key))}"
    for name in both:
        a, b = (content["tasks"][name]["grades"].keys() for content in (first, other))
        if a != b:
            yield f"{name} has {len(b)} questions, not {len(a)}, and {len(a & b)} of them are the same"


def _entries(results: Mapping[str, Results], tasks: Sequence[str], metric: str) -> Iterator[Entry]:
    """The entries of one task, or of the mean over several."""
    having = [label for label, content in results.items() if all(metric in _numbers(content, task) for task in tasks)]
    name = tasks[0] if len(tasks) == 1 else MEAN
    for label in having:
        number = mean_over_tasks([_numbers(results[label], task)[metric] for task in tasks])
        questions = sum(results[label]["tasks"][task]["questions"] for task in tasks)
        entry = Entry(name, metric, label, number["mean"], (number["low"], number["high"]), questions)
        if label != having[0] == next(iter(results)):
            pairs = [_pair(results[having[0]]["tasks"][task], results[label]["tasks"][task], metric) for task in tasks]
            entry.difference = _difference(pairs) if all(len(pair.values) for pair in pairs) else None
        yield entry
    if len(tasks) == 1 or {*tasks} == {*MATH}:
        models = [str(results[label]["model"].get(key)) for label in having for key in ("name", "base")]
        yield from (Entry(name, metric, row.label, row.value) for row in paper_rows(models, name, metric))


def _numbers(content: Results, task: str) -> dict[str, Mapping[str, Any]]:
    """The task's numbers that have values by question; empty without the task."""
    of_task = content["tasks"].get(task)
    if of_task is None:
        return {}
    greedy = {"greedy": of_task["greedy"]} if of_task.get("greedy") else {}
    return {"accuracy": of_task["accuracy"], **greedy, **(of_task.get("scores") or {})}


class _Pair(NamedTuple):
    """Differences of two files in the questions that both have, of one task.

    Attributes:
        values: (Q,).
        groups: (Q,), their clusters.
        single: each value is the difference of two grades, and each question is its own cluster.
    """

    values: Values
    groups: list[str]
    single: bool


def _pair(first: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> _Pair:
    a, b = (values_of(task, metric) for task in (first, other))
    ids = [question for question in a if question in b]
    groups = {id: f"group {name}" for name, group in (first.get("groups") or {}).items() for id in group["members"]}
    single = metric == "greedy" or (
        metric == "accuracy" and {len(grades) for task in (first, other) for grades in task["grades"].values()} == {1}
    )
    values = np.array([b[question] - a[question] for question in ids])
    return _Pair(values, [groups.get(question, f"question {question}") for question in ids], single and not groups)


def values_of(task: Mapping[str, Any], metric: str) -> Mapping[str, float]:
    """The values of a task in a results file, by question."""
    if metric == "accuracy":
        return {question: sum(grades) / len(grades) for question, grades in task["grades"].items()}
    values: Mapping[str, float] = task["values"][metric]
    return values


def _difference(pairs: Sequence[_Pair]) -> Difference:
    r"""The difference in one task, or the unweighted mean of the differences in several.

    The interval is a percentile bootstrap over clusters of questions, within each task, expanded for few clusters
    (Hesterberg 2015, arXiv:1411.5279). The test is McNemar's exact one over the discordant questions where each has one
    grade, otherwise a t-test with the clustered standard error.
    """
    from scipy.stats import binomtest, norm, t

    mean = float(np.mean([pair.values.mean() for pair in pairs]))
    questions = sum(len(pair.values) for pair in pairs)
    errors, clusters = zip(*(clustered_error(pair.values, pair.groups) for pair in pairs), strict=True)
    if None in errors:
        return Difference(questions, mean, None, None)
    freedom = sum(clusters) - len(clusters)
    draws = np.mean([bootstrap(pair.values, pair.groups) for pair in pairs], axis=0)
    low, high = np.quantile(draws, norm.cdf(t.ppf([0.025, 0.975], freedom))).clip(-1, 1)
    p: float | None
    if all(pair.single for pair in pairs):
        gains, losses = (sum(int((sign * pair.values > 0).sum()) for pair in pairs) for sign in (1, -1))
        p = float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
    else:
        error = float(np.linalg.norm(errors)) / len(pairs)
        p = None if error < 1e-9 else float(2 * t.sf(abs(mean) / error, freedom))
    return Difference(questions, mean, (float(low), float(high)), p)


def bootstrap(values: Values, groups: Sequence[str], resamples: int = RESAMPLES) -> Values:
    r"""Means of `values` with clusters drawn with replacement, spread by $\sqrt{G / (G - 1)}$ for G clusters.

    Clusters with the same sum and size are drawn together, from a multinomial distribution: graded answers have few
    distinct values, so that many questions take no longer than a few.

    Returns:
        (resamples,), the same in every call.
    """
    index = np.unique(groups, return_inverse=True)[1]
    clusters, counts = np.unique(
        np.column_stack([np.bincount(index, values).round(9), np.bincount(index)]), axis=0, return_counts=True
    )
    total, generator = int(counts.sum()), np.random.default_rng(0)
    parts = [  # in parts, since `counts` may be long
        generator.multinomial(total, counts / total, size=len(part)) @ clusters
        for part in np.array_split(np.empty(resamples), 20)
    ]
    sums, sizes = np.concatenate(parts).T
    return np.asarray(values.mean() + (sums / sizes - values.mean()) * np.sqrt(total / max(total - 1, 1)))


def _adjust(differences: Sequence[Difference]) -> int:
    """Adjust the p-values for their number (Holm 1979), and return it."""
    tested = sorted((p, index) for index, each in enumerate(differences) if (p := each.p) is not None)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        differences[index].p = largest
    return len(tested)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
