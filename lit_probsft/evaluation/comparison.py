"""Compares results files: differences of the same questions, with intervals and tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_probsft.errors import UserError
from lit_probsft.evaluation.numbers import Values, clustered_error, mean_over_tasks
from lit_probsft.evaluation.paper_rows import MATH, paper_rows
from lit_probsft.evaluation.results import Results

RESAMPLES = 10_000
MEAN = "mean"
"""The name of the mean over tasks."""
GROUPS = "mean of groups"
"""The name of the unweighted mean over a task's groups."""
FREE = {"seed", "greedy", "limit", "source"}
"""Settings that may differ. Instead of `limit` and `source`, the questions are compared."""
_DIGESTS = ("rows_fingerprint", "prompt_sha256")
"""Settings of a task that differ with its questions."""
_Pair = tuple[Values, list[str]]
"""Differences of two files in the questions of a task that both have, and the cluster of each question: (Q,), Q."""


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
    if any(entry.questions is None for entry in entries):
        notes.append(
            "paper: Li et al., arXiv 2510.00526; mathematics is avg@16 at temperature 1, everything else greedy."
        )
    tests = _adjust(entries)
    if others:
        notes.append(f"Differences are to {first}, over the same questions.")
        test = "McNemar's exact test for single answers to one task, otherwise a t-test"
        notes.append(f"p: {test}" + (f"; adjusted for {tests} tests (Holm)." if tests > 1 else "."))
    return Comparison(entries, notes)


def measured_differently(first: Results, other: Results) -> Iterator[str]:
    """What differs in the measurement of the tasks that both have: the setting, and both values."""
    pairs = [("", first["settings"], other["settings"])]
    for name in [name for name in first["tasks"] if name in other["tasks"]]:
        a, b = (content["tasks"][name] for content in (first, other))
        asked, also = a["grades"].keys(), b["grades"].keys()
        if asked != also:
            yield f"{name} has {len(also)} questions, not {len(asked)}, and {len(asked & also)} of them are the same"
        free = () if asked == also else _DIGESTS
        of_a, of_b = ({key: value for key, value in each["settings"].items() if key not in free} for each in (a, b))
        pairs.append((f"{name} ", of_a, of_b))
    per_task = {key for _, a, b in pairs[1:] for key in [*a, *b]}
    for where, a, b in pairs:
        for key in dict.fromkeys([*a, *b]):
            if not (key in FREE or (not where and key in per_task)) and a.get(key) != b.get(key):
                yield f"{where}{key} is {_short(b.get(key))}, not {_short(a.get(key))}"


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
            difference = _difference(pairs) if all(len(values) for values, _ in pairs) else {}
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
    return [(np.array([b[question] - a[question] for question in ids]), clusters)]


def values_of(task: Mapping[str, Any], metric: str) -> Mapping[str, float]:
    """The values of a task in a results file, by question."""
    if metric == "accuracy":
        return {question: sum(grades) / len(grades) for question, grades in task["grades"].items()}
    values: Mapping[str, float] = task["values"][metric]
    return values


def _difference(pairs: Sequence[_Pair]) -> dict[str, Any]:
    r"""Fields of `Entry`: the difference in one task, or the unweighted mean of the differences in several.

    The interval is a percentile bootstrap over clusters of questions, within each task, as much wider as a quantile of
    Student's t exceeds the normal one. The test is McNemar's exact one over the questions of one task where each has
    one grade; otherwise a t-test with the clustered standard errors, and the degrees of freedom of Welch (1947).
    """
    from scipy.stats import binomtest, norm, t

    mean = float(np.mean([values.mean() for values, _ in pairs]))
    found: dict[str, Any] = {"paired": sum(len(values) for values, _ in pairs), "difference": mean}
    errors, freedoms = zip(*(clustered_error(*pair) for pair in pairs), strict=True)
    if None in errors:
        return found
    variances = np.square(errors)
    error = float(np.sqrt(variances.sum())) / len(pairs)
    freedom = variances.sum() ** 2 / (variances**2 / freedoms).sum() if error else sum(freedoms)
    draws = np.mean([bootstrap(*pair, seed) for seed, pair in enumerate(pairs)], axis=0)
    wider = t.ppf(0.975, freedom) / norm.ppf(0.975)
    low, high = (mean + wider * (np.quantile(draws, [0.025, 0.975]) - mean)).clip(-1, 1)
    found |= {"difference_low": float(low), "difference_high": float(high)}
    values, groups = pairs[0]
    if len(pairs) == 1 and {*values} <= {-1, 0, 1} and len({*groups}) == len(values):
        gains, losses = int((values > 0).sum()), int((values < 0).sum())
        found["p"] = float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
    elif error > 1e-9 or not mean:
        found["p"] = float(2 * t.sf(abs(mean) / error, freedom)) if mean else 1.0
    return found


def bootstrap(values: Values, groups: Sequence[str], seed: int = 0) -> Values:
    r"""`RESAMPLES` means of `values`, with its G clusters drawn with replacement, spread by $\sqrt{G / (G - 1)}$.

    Two more questions are among them, with the largest gain and the same loss, so that there is a spread even where
    few questions or none differ (Agresti and Min 2005, Bonett and Price 2012).

    Clusters with the same sum and size are drawn together, from a multinomial distribution: graded answers have few
    distinct values, so that many questions take no longer than a few. Where there are more, they are rounded for it.
    """
    index = np.unique(groups, return_inverse=True)[1]
    largest = float(np.abs(values).max()) or 1.0
    sums = np.append(np.bincount(index, values), [largest, -largest]).round(9)
    sums = sums.round(2) if len(np.unique(sums)) > 300 else sums
    sizes = np.append(np.bincount(index), [1, 1])
    clusters, counts = np.unique(np.column_stack([sums, sizes]), axis=0, return_counts=True)
    total, generator = int(counts.sum()), np.random.default_rng(seed)
    part = RESAMPLES // 20  # for memory
    drawn = [generator.multinomial(total, counts / total, size=part) @ clusters for _ in range(20)]
    means = np.divide(*np.concatenate(drawn).T)
    return np.asarray(values.mean() + (means - means.mean()) * np.sqrt(total / (total - 1)))


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
