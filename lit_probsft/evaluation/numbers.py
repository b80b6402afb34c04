"""The numbers of a task, made from the graded answers of a complete evaluation.

Questions are the sample: every number is a mean over questions, and its standard error says how far it would move with
other questions of the same kind. Several answers to a question are averaged first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import takewhile
from math import comb, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_probsft.evaluation.generation.requests import GREEDY
from lit_probsft.evaluation.tasks.base import Question

Values = NDArray[np.float64]
Row = Mapping[str, Any]
Number = dict[str, Any]
"""`mean`, its standard error `se` (None if it is unknown), and the ends of a 95% interval, `low` and `high`."""

TOO_LONG = "prompt_too_long"
"""`finish_reason` of a question whose prompt does not fit the model's context. All its answers count as wrong."""


def summarize(rows: Iterable[Row], questions: Sequence[Question]) -> dict[str, Any]:
    """The numbers of one task, by the schema in README.md, without settings and likelihood.

    Args:
        rows: the lines of predictions.jsonl for the task, in any order. A question whose prompt is too long needs only
            one.
        questions: all questions of the task, at least one.

    Raises:
        ValueError: an answer is missing, or there twice: numbers of a part would be biased towards short answers.
    """
    answers, too_long = _collect(rows, questions)
    samples = sorted({sample for of_question in answers.values() for sample in of_question})
    drawn = [sample for sample in samples if sample != GREEDY] or samples
    n = max(len(drawn), 1)
    groups = groups_of(questions)
    fitting = {name: [of_question[sample] for sample in drawn] for name, of_question in answers.items() if of_question}
    generated = [row for of_question in fitting.values() for row in of_question]
    tokens = [row["tokens"] for row in generated]

    def by_question(value: Callable[[Sequence[Row]], Any], otherwise: Any = 0.0) -> dict[str, Any]:
        return {name: value(fitting[name]) if name in fitting else otherwise for name in answers}

    def number(values: Iterable[float]) -> Number:
        return mean_of(np.fromiter(values, float, len(answers)), groups, n)

    def share(condition: Callable[[Row], bool]) -> float:
        return _rounded(sum(map(condition, generated)) / max(len(generated), 1))

    grades = by_question(lambda of_question: [int(row["correct"]) for row in of_question], [0] * n)
    members: dict[str, list[str]] = {}
    for question, cluster in zip(questions, groups, strict=True):
        if question.group is not None and cluster == f"group {question.group}":
            members.setdefault(question.group, []).append(question.id)
    by_group: dict[str, Any] = {
        name: {
            "questions": len(ids),
            "accuracy": mean_of(np.array([sum(grades[question]) / n for question in ids]), ids, n),
            "members": ids,
        }
        for name, ids in sorted(members.items())
    }
    right = [sum(of_question) for of_question in grades.values()]
    votes = [*by_question(majority_votes, (0.0,) * n).values()] if n <= 1000 else []  # floats overflow
    ks = [*takewhile(lambda k: k < n, (2**i for i in range(64))), n]
    names = sorted({name for row in generated for name in row.get("scores") or {}})
    values = {name: by_question(partial(_mean_score, name)) for name in names}
    if drawn != samples:
        values["greedy"] = {name: float(name in fitting and answers[name][GREEDY]["correct"]) for name in answers}
    return {
        "questions": len(questions),
        "answers": len(questions) * n,
        "accuracy": number(count / n for count in right),
        "greedy": number(values["greedy"].values()) if "greedy" in values else None,
        "pass": {str(k): number(pass_at(k, n, count) for count in right) for k in ks},
        "majority": {str(k): number(shares[k - 1] for shares in votes) for k in ks if votes},
        "scores": {name: number(values[name].values()) for name in names},
        "tokens": {
            name: _rounded(function(tokens)) if tokens else None
            for name, function in (("mean", np.mean), ("median", np.median), ("max", np.max))
        },
        "cut_off": share(lambda row: row["finish_reason"] == "length"),
        "no_answer": share(lambda row: row["extracted"] is None),
        "prompt_too_long": too_long,
        "groups": by_group,
        "group_mean": mean_over_tasks([group["accuracy"] for group in by_group.values()]) if by_group else None,
        "grades": grades,
        # What `grades` does not have, by question. `compare` pairs these.
        "values": {
            name: {question: _rounded(value) for question, value in of_questions.items()}
            for name, of_questions in values.items()
        },
    }


def _collect(rows: Iterable[Row], questions: Sequence[Question]) -> tuple[dict[str, dict[int, Row]], int]:
    """The answers to each question by sample, none where the prompt is too long, and the number of such questions.

    Raises:
        ValueError: see `summarize`.
    """
    answers: dict[str, dict[int, Row]] = {question.id: {} for question in questions}
    too_long = set()
    for row in rows:
        if row["finish_reason"] == TOO_LONG:
            too_long.add(row["question"])
        elif row["sample"] in answers[row["question"]]:
            raise ValueError(f"question {row['question']!r} has two answers with the number {row['sample']}")
        else:
            answers[row["question"]][row["sample"]] = row
    samples = {sample for of_question in answers.values() for sample in of_question}
    for name, of_question in answers.items():
        if of_question.keys() != (set() if name in too_long else samples):
            raise ValueError(f"question {name!r} has the answers {sorted(of_question)}, others have {sorted(samples)}")
    return answers, len(too_long)


def groups_of(questions: Sequence[Question]) -> list[str]:
    """The cluster of each question: its group where the task has several, otherwise the question itself."""
    several = len({question.group for question in questions} - {None}) > 1
    return [
        f"group {question.group}" if several and question.group is not None else f"question {question.id}"
        for question in questions
    ]


def mean_of(values: Values, groups: Sequence[str], answers: int = 1) -> Number:
    r"""Mean, standard error and a 95% interval of values from 0 to 1.

    The standard error is that of a mean with clusters (for evaluations, Miller 2024, arXiv:2411.00640), and corrected
    for their number and unequal sizes (Bell and McCaffrey 2002, for a common effect in each cluster): with $w_g$, the
    share of the questions in cluster g, and $r_g = \sum_{i \in g} (x_i - \bar x) / Q$, it is
    $\sqrt{\sum_g r_g^2 / (1 - \sum_g w_g^2 (2 w_g - \sum_h w_h^2) / \sum_g w_g^2)}$. Where each question is its own
    cluster, this is the sample's standard deviation over $\sqrt Q$. None for a single cluster, which says nothing about
    others.

    The interval is Wilson's, with a quantile of Student's t for $1 / \sum_g w_g^2 - 1$ degrees of freedom, which are
    $G - 1$ for G clusters of one size, and the number of independent right-or-wrong answers that would have this
    standard error, $\bar x (1 - \bar x) / \mathrm{se}^2$. It stays within 0 and 1, and is
    never empty: its upper end is at least that of no right answer among Q, and its lower end at most that of Q right
    answers among Q.

    Args:
        values: (Q,), one per question.
        groups: the cluster of each.
        answers: answers that each value averages.
    """
    mean, se, freedom = float(values.mean()), *clustered_error(values, groups)
    if se is None:
        return {"mean": _rounded(mean), "se": None, "low": 0.0, "high": 1.0}
    from scipy.stats import t

    quantile, most = float(t.ppf(0.975, freedom)), len(values) * answers
    size = min(mean * (1 - mean) / se**2, most) if se > 1e-9 else most
    low, high = _wilson(mean, size, quantile)
    margin = _wilson(0.0, len(values), quantile)[1]
    numbers = {"mean": mean, "se": se, "low": min(low, 1 - margin), "high": max(high, margin)}
    return {name: _rounded(value) for name, value in numbers.items()}


def clustered_error(values: Values, groups: Sequence[str]) -> tuple[float | None, float]:
    """The standard error of the mean of `values`, and its degrees of freedom; see `mean_of`."""
    index = np.unique(groups, return_inverse=True)[1]
    shares = np.bincount(index) / len(values)
    if len(shares) == 1:
        return None, 0.0
    sums = np.bincount(index, values - values.mean()) / len(values)
    squares = shares**2
    together = float(squares.sum())
    kept = (
        1 - float(squares @ (2 * shares - together)) / together
    )  # of the variance, since the mean is that of `values`
    return sqrt(float(sums @ sums) / kept), 1 / together - 1


def mean_over_tasks(numbers: Sequence[Mapping[str, Any]]) -> Number:
    """The unweighted mean of the numbers of several tasks or groups, and its interval for these very tasks or groups.

    The interval combines theirs, which are not symmetric (MOVER, Zou and Donner 2008).
    """
    means, lows, highs = (np.array([number[name] for number in numbers]) for name in ("mean", "low", "high"))
    mean, errors = float(means.mean()), [number["se"] for number in numbers]
    return {
        "mean": _rounded(mean),
        "se": None if None in errors else _rounded(np.linalg.norm(errors) / len(errors)),
        "low": _rounded(mean - np.linalg.norm(means - lows) / len(errors)),
        "high": _rounded(mean + np.linalg.norm(highs - means) / len(errors)),
    }


def _mean_score(name: str, rows: Sequence[Row]) -> float:
    return sum(float(row["scores"].get(name, 0)) for row in rows) / len(rows)


def pass_at(k: int, n: int, right: int) -> float:
    """The probability that one of k answers is right, drawn from n without replacement (Chen et al. 2021)."""
    return 1 - comb(n - right, k) / comb(n, k)


def majority_votes(rows: Sequence[Row]) -> tuple[float, ...]:
    """`majority_at` of one question. All right answers are equal; wrong ones are if their texts are, but for case and
    spaces."""
    wrong = [row["extracted"] for row in rows if not row["correct"]]
    votes = Counter("".join(text.casefold().split()) for text in wrong if text is not None)
    return majority_at(len(rows) - len(wrong), tuple(sorted(votes.values())), wrong.count(None))


@lru_cache(1 << 16)
def majority_at(right: int, wrong: tuple[int, ...], silent: int) -> tuple[float, ...]:
    """The probability that the majority of k answers is right, drawn without replacement, for k from 1 to their number.

    Exact: counts the draws in which the right answer has the most votes. A tie of t answers counts 1/t.

    Args:
        right: number of right answers; they are equal.
        wrong: number of answers with each wrong result.
        silent: number of answers without a result, which do not vote.
    """
    n = right + sum(wrong) + silent
    won = np.zeros(n + 1)
    for votes in range(1, right + 1):
        # ways[t, d]: the ways to draw d of the other answers so that no wrong result has more than `votes`, and t have
        # as many. Results that never get so many can be drawn freely.
        rivals = [count for count in wrong if count >= votes]
        free = n - right - sum(rivals)
        ways = np.zeros((len(rivals) + 1, n - right + 1))
        ways[0, : free + 1] = [float(comb(free, d)) for d in range(free + 1)]
        for count in rivals:
            drawn = np.zeros_like(ways)
            for d in range(min(votes, n - right) + 1):
                shifted = float(comb(count, d)) * ways[:, : ways.shape[1] - d]
                if d < votes:
                    drawn[:, d:] += shifted
                else:
                    drawn[1:, d:] += shifted[:-1]
            ways = drawn
        share = (ways / np.arange(1, len(ways) + 1)[:, None]).sum(0)
        won[votes : votes + len(share)] += float(comb(right, votes)) * share
    return tuple(float(won[k] / comb(n, k)) for k in range(1, n + 1))


def _wilson(mean: float, size: float, quantile: float) -> tuple[float, float]:
    square = quantile**2
    middle = (mean + square / (2 * size)) / (1 + square / size)
    half = quantile / (1 + square / size) * sqrt(max(mean * (1 - mean), 0) / size + square / (4 * size**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _rounded(value: Any) -> float:
    return round(float(value), 6)
