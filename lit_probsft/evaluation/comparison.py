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
"""Settings that may differ. Instead of `limit` and `source`, the questions are compared."""
GROUPS = "mean of groups"
"""The name of the unweighted mean over a task's groups."""


@dataclass
class Entry:
    """A number of one results file, or of the paper, and how it differs from that of the first file.

    Fields are None if there is no such number.

    Attributes:
        task: the task's name, or `MEAN`.
        metric: `accuracy`, `greedy`, `GROUPS` or a score.
        result: the label of the results file, or of the paper's row.
        questions: their number.
        mean, low, high: the number and its 95% interval, from 0 to 1.
        paired: the number of questions that the first file has too.
        difference, difference_low, difference_high: the mean of the paired differences, and its 95% interval.
        p: of the hypothesis that there is no difference, adjusted for all tests of the comparison.
    """

    task: str
    metric: str
    result: str
    questions: int | None
    mean: float
    low: float | None = None
    high: float | None = None
    paired: int | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None


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
    tests = _adjust(entries)
    if others:
        notes.append(f"Differences are to {first}, over the same questions.")
        test = "McNemar's exact test for single answers, otherwise a t-test"
        notes.append(f"p: {test}; adjusted for {tests} tests (Holm).")
    return Comparison(entries, notes)


def measured_differently(first: Results, other: Results) -> Iterator[str]:
    """What differs in the measurement of the tasks that both have: the setting, and both values."""
    both = [name for name in other["tasks"] if name in first["tasks"]]
    pairs = [("", first["settings"], other["settings"])]
    pairs += [(f"{name} ", *(content["tasks"][name]["settings"] for content in (first, other))) for name in both]
    per_task = {key for _, a, b in pairs[1:] for key in [*a, *b]}
    for where, a, b in pairs:
        for key in dict.fromkeys([*a, *b]):
            if not (key in FREE or (not where and key in per_task)) and a.get(key) != b.get(key):
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
        difference: dict[str, Any] = {}
        if label != having[0] == next(iter(results)):
            both = [(results[having[0]]["tasks"][task], results[label]["tasks"][task]) for task in tasks]
            pairs = [pair for a, b in both for pair in _pairs(a, b, metric)]
            difference = _difference(pairs) if all(len(pair.values) for pair in pairs) else {}
        yield Entry(name, metric, label, questions, number["mean"], number["low"], number["high"], **difference)
    if len(tasks) == 1 or {*tasks} == {*MATH}:
        models = [str(results[label]["model"].get(key)) for label in having for key in ("name", "base")]
        yield from (Entry(name, metric, row.label, None, row.value) for row in paper_rows(models, name, metric))


def _numbers(content: Results, task: str) -> dict[str, Mapping[str, Any]]:
    """The task's numbers that have values by question; empty without the task."""
    of_task = content["tasks"].get(task)
    if of_task is None:
        return {}
    others = {"greedy": of_task.get("greedy"), GROUPS: of_task.get("group_mean")}
    found = {name: number for name, number in others.items() if number}
    return {"accuracy": of_task["accuracy"], **found, **(of_task.get("scores") or {})}


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


def _pairs(first: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> list[_Pair]:
    """The differences in a task; for `GROUPS`, those in each of its groups."""
    members = {name: group["members"] for name, group in (first.get("groups") or {}).items()}
    if metric == GROUPS:
        parts = [{**first, "grades": {id: first["grades"][id] for id in ids}, "groups": {}} for ids in members.values()]
        return [pair for part in parts for pair in _pairs(part, other, "accuracy")]
    a, b = (values_of(task, metric) for task in (first, other))
    ids = [question for question in a if question in b]
    groups = {question: f"group {name}" for name, questions in members.items() for question in questions}
    clusters = [groups.get(question, f"question {question}") for question in ids]
    answers = {len(grades) for task in (first, other) for grades in task["grades"].values()}
    single = metric == "greedy" or (metric == "accuracy" and answers == {1})
    return [_Pair(np.array([b[question] - a[question] for question in ids]), clusters, single and not groups)]


def values_of(task: Mapping[str, Any], metric: str) -> Mapping[str, float]:
    """The values of a task in a results file, by question."""
    if metric == "accuracy":
        return {question: sum(grades) / len(grades) for question, grades in task["grades"].items()}
    values: Mapping[str, float] = task["values"][metric]
    return values


def _difference(pairs: Sequence[_Pair]) -> dict[str, Any]:
    r"""Fields of `Entry`: the difference in one task, or the unweighted mean of the differences in several.

    The interval is a percentile bootstrap over clusters of questions, within each task, expanded for few clusters
    (Hesterberg 2015, arXiv:1411.5279). The test is McNemar's exact one over the discordant questions where each has one
    grade, otherwise a t-test with the clustered standard error.
    """
    from scipy.stats import binomtest, norm, t

    mean = float(np.mean([pair.values.mean() for pair in pairs]))
    found: dict[str, Any] = {"paired": sum(len(pair.values) for pair in pairs), "difference": mean}
    errors, clusters = zip(*(clustered_error(pair.values, pair.groups) for pair in pairs), strict=True)
    if None in errors:
        return found
    freedom = sum(clusters) - len(clusters)
    draws = np.mean([bootstrap(pair.values, pair.groups, seed) for seed, pair in enumerate(pairs)], axis=0)
    low, high = np.quantile(draws, norm.cdf(t.ppf([0.025, 0.975], freedom))).clip(-1, 1)
    found |= {"difference_low": float(low), "difference_high": float(high)}
    if all(pair.single for pair in pairs):
        gains, losses = (sum(int((sign * pair.values > 0).sum()) for pair in pairs) for sign in (1, -1))
        found["p"] = float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
    elif (error := float(np.linalg.norm(errors)) / len(pairs)) > 1e-9:
        found["p"] = float(2 * t.sf(abs(mean) / error, freedom))
    return found


def bootstrap(values: Values, groups: Sequence[str], seed: int = 0) -> Values:
    r"""`RESAMPLES` means of `values`, with its G clusters drawn with replacement, spread by $\sqrt{G / (G - 1)}$.

    Clusters with the same sum and size are drawn together, from a multinomial distribution: graded answers have few
    distinct values, so that many questions take no longer than a few. Where there are more, they are rounded for it.
    """
    index = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(index, values).round(9)
    sums = sums.round(2) if len(np.unique(sums)) > 300 else sums
    clusters, counts = np.unique(np.column_stack([sums, np.bincount(index)]), axis=0, return_counts=True)
    total, generator = int(counts.sum()), np.random.default_rng(seed)
    part = RESAMPLES // 20  # for memory
    drawn = [generator.multinomial(total, counts / total, size=part) @ clusters for _ in range(20)]
    means = np.divide(*np.concatenate(drawn).T)
    return np.asarray(values.mean() + (means - means.mean()) * np.sqrt(total / max(total - 1, 1)))


def _adjust(entries: Sequence[Entry]) -> int:
    """Adjust the p-values for their number (Holm 1979), and return it."""
    tested = sorted((entry.p, index) for index, entry in enumerate(entries) if entry.p is not None)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        entries[index].p = largest
    return len(tested)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
