"""Numbers of an evaluation: each against the obvious lines, and laws that hold for all rows."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.evaluation.numbers import (
    TOO_LONG,
    clustered_error,
    majority_at,
    mean_of,
    mean_over_tasks,
    pass_at,
    summarize,
)
from lit_probsft.evaluation.tasks.base import Question


def question(name: str, group: str | None = None) -> Question:
    return Question(name, [{"role": "user", "content": "?"}], "1", group=group)


def row(name: str, sample: int, answer: str | None, **more: Any) -> dict[str, Any]:
    """A row; the answer "right" is right."""
    correct = {"correct": answer == "right", "extracted": answer, "reason": "", "scores": {}}
    return {"question": name, "sample": sample, "text": "", "tokens": 3, "finish_reason": "stop", **correct, **more}


answers = st.sampled_from(["right", "1", "2", "3", None])


@st.composite
def evaluations(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Question]]:
    """Rows of up to six questions in up to three groups, some of which are too long; with or without greedy answers."""
    n, greedy, count = draw(st.integers(1, 4)), draw(st.booleans()), draw(st.integers(1, 6))
    questions = [question(str(i), draw(st.sampled_from([None, "a", "b"]))) for i in range(count)]
    rows = []
    for each in questions:
        if draw(st.integers(0, 9)) == 0:
            rows.append(row(each.id, 0, None, finish_reason=TOO_LONG))
            continue
        for sample in [*range(n), *[-1] * greedy]:
            scores = {"close": draw(st.floats(0, 1))}
            finish = draw(st.sampled_from(["stop", "length"]))
            rows.append(row(each.id, sample, draw(answers), scores=scores, finish_reason=finish))
    return rows, questions


def numbers_in(content: Any) -> list[dict[str, float | None]]:
    if not isinstance(content, dict):
        return []
    if "low" in content:
        return [content]
    return [number for part in content.values() for number in numbers_in(part)]


@given(evaluations(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_numbers_do_not_depend_on_the_order_of_rows_and_stay_in_range(
    evaluation: tuple[list[dict[str, Any]], list[Question]], shuffler: random.Random
) -> None:
    rows, questions = evaluation
    found = summarize(rows, questions)
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert summarize(shuffled, questions) == found
    for number in numbers_in(found):
        assert number["low"] is not None
        assert number["high"] is not None
        assert number["mean"] is not None
        assert 0 <= number["low"] <= number["mean"] <= number["high"] <= 1
        assert number["low"] < number["high"]
    right = [grade for grades in found["grades"].values() for grade in grades]
    assert found["answers"] == len(right)
    assert found["accuracy"]["mean"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert found["pass"]["1"]["mean"] == pytest.approx(found["accuracy"]["mean"], abs=1e-6)
    assert found["majority"]["1"]["mean"] == pytest.approx(found["accuracy"]["mean"], abs=1e-6)
    passed = [number["mean"] for number in found["pass"].values()]
    assert passed == sorted(passed)
    assert passed[-1] == pytest.approx(sum(map(max, found["grades"].values())) / len(questions), abs=1e-6)


def test_numbers_of_a_small_evaluation() -> None:
    rows = [
        *(row("a", sample, answer) for sample, answer in enumerate(["right", " X y", "xY", None])),
        *(row("b", sample, "right", finish_reason="length", tokens=9) for sample in range(4)),
        row("a", -1, "right", scores={"close": 0.5}),
        row("b", -1, None),
        row("c", 0, None, finish_reason=TOO_LONG),
    ]
    found = summarize(rows, [question(name) for name in "abc"])
    assert found["grades"] == {"a": [1, 0, 0, 0], "b": [1, 1, 1, 1], "c": [0, 0, 0, 0]}
    assert [found[name] for name in ("questions", "answers", "prompt_too_long")] == [3, 12, 1]
    assert found["accuracy"]["mean"] == pytest.approx(1.25 / 3, abs=1e-6)
    assert found["greedy"]["mean"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["values"]["greedy"] == {"a": 1, "b": 0, "c": 0}
    assert found["majority"]["4"]["mean"] == pytest.approx(1 / 3, abs=1e-6)  # the two wrong ones of a are equal
    assert found["majority"]["2"]["mean"] == pytest.approx((1 / 6 * (1 + 0.5 + 0.5) + 1) / 3, abs=1e-6)
    assert found["tokens"] == {"mean": 6, "median": 6, "max": 9}
    assert (found["cut_off"], found["no_answer"]) == (0.5, 0.125)


def test_an_incomplete_evaluation_has_no_numbers() -> None:
    rows = [row(name, sample, "1") for name in "ab" for sample in range(2)]
    questions = [question(name) for name in "ab"]
    summarize(rows, questions)
    for wrong in (rows[1:], [*rows, rows[0]], rows[:2]):
        with pytest.raises(ValueError, match="question '[ab]'"):
            summarize(wrong, questions)


@pytest.mark.parametrize(("right", "n"), [(0, 4), (1, 5), (3, 6), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(right: int, n: int) -> None:
    graded = [1] * right + [0] * (n - right)
    for k in range(1, n + 1):
        draws = [max(draw) for draw in itertools.combinations(graded, k)]
        assert pass_at(k, n, right) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize(
    ("right", "wrong", "silent"),
    [(3, (1, 2, 3), 1), (1, (1, 1, 1), 2), (0, (2,), 1), (4, (), 0), (2, (2, 2, 2), 1), (5, (1, 4), 0)],
)
def test_majority_is_the_share_of_draws_that_the_right_answer_wins(
    right: int, wrong: tuple[int, ...], silent: int
) -> None:
    answers = ["right"] * right + [str(i) for i, count in enumerate(wrong) for _ in range(count)] + [None] * silent

    def won(draw: tuple[str | None, ...]) -> float:
        votes = Counter(answer for answer in draw if answer is not None)
        best = [answer for answer in votes if votes[answer] == max(votes.values())]
        return ("right" in best) / max(len(best), 1)

    expected = [
        float(np.mean([won(draw) for draw in itertools.combinations(answers, k)])) for k in range(1, len(answers) + 1)
    ]
    assert majority_at(right, wrong, silent) == pytest.approx(expected)


def test_majority_at_many_samples_is_a_probability_and_prefers_the_frequent() -> None:
    many = majority_at(30, (*[1] * 14, 20), 0)
    assert all(0 <= share <= 1 for share in many)
    assert many[0] == pytest.approx(30 / 64)
    assert many[-1] == pytest.approx(1)


def test_the_standard_error_is_that_of_miller_corrected_for_few_and_unequal_clusters() -> None:
    generator = np.random.default_rng(0)
    values, groups = generator.random(42), [str(i % 7) for i in range(42)]
    off = values - values.mean()
    pairs = sum(off[i] * off[j] for i in range(42) for j in range(42) if groups[i] == groups[j])
    assert clustered_error(values, groups) == (pytest.approx(sqrt(7 / 6 * pairs) / 42), pytest.approx(6))
    alone = [str(i) for i in range(42)]
    assert clustered_error(values, alone)[0] == pytest.approx(values.std(ddof=1) / sqrt(42))
    assert clustered_error(values, ["all"] * 42) == (None, 0)
    unequal = list("aaaaaaabbcd")
    effects = [np.array([float(name == cluster) for name in unequal]) for cluster in "abcd"]
    variance = sum(effect.mean() ** 2 for effect in effects)  # of the mean of independent effects with variance 1
    assert sum((clustered_error(effect, unequal)[0] or 0) ** 2 for effect in effects) == pytest.approx(variance)


@pytest.mark.parametrize("count", [5, 300])
def test_intervals_have_a_width_at_zero_and_one_and_grow_with_the_mean(count: int) -> None:
    groups = [str(i) for i in range(count)]
    found = [mean_of(np.repeat([1.0, 0.0], [right, count - right]), groups) for right in range(count + 1)]
    for number, reverse in zip(found, reversed(found), strict=True):
        assert number["low"] == pytest.approx(1 - reverse["high"], abs=2e-6)
    highs = [number["high"] for number in found]
    assert highs == sorted(highs)
    assert found[0]["low"] == 0 < found[0]["high"] == pytest.approx(4 / count, rel=0.6)
    one_of_many = mean_of(np.array([1 / 16] + [0.0] * (count - 1)), groups, 16)
    assert one_of_many["high"] >= found[0]["high"]


@pytest.mark.parametrize(("p", "n"), [(0.02, 1), (0.1, 1), (0.5, 16), (0.98, 16)])
def test_intervals_contain_the_truth_in_about_95_of_100_evaluations(p: float, n: int) -> None:
    generator, count = np.random.default_rng(1), 100
    groups, hits = [str(i) for i in range(count)], 0
    for _ in range(400):
        chances = generator.beta(2 * p, 2 - 2 * p, count)
        number = mean_of(generator.binomial(n, chances) / n, groups, n)
        hits += number["low"] <= p <= number["high"]
    assert 0.92 <= hits / 400 <= 0.995


def test_clustered_questions_say_less_than_independent_ones() -> None:
    values = np.repeat([0.0, 1.0, 1.0, 0.0, 1.0], 20)
    clustered, alone = (mean_of(values, [str(i // size) for i in range(100)]) for size in (20, 1))
    assert clustered["se"] > 3 * alone["se"]
    assert clustered["high"] - clustered["low"] > 3 * (alone["high"] - alone["low"])


def test_the_mean_over_tasks_has_the_interval_of_one_task_and_a_narrower_one_of_four() -> None:
    number = mean_of(np.repeat([1.0, 0.0], [30, 70]), [str(i) for i in range(100)])
    assert mean_over_tasks([number]) == number
    four = mean_over_tasks([number] * 4)
    assert four["mean"] == number["mean"]
    assert four["se"] == pytest.approx(number["se"] / 2, abs=1e-6)
    assert four["high"] - four["low"] == pytest.approx((number["high"] - number["low"]) / 2, abs=1e-5)
    assert mean_over_tasks([number, {**number, "se": None}])["se"] is None
