"""Mathematical answers: which are right, and laws that hold for every answer."""

from __future__ import annotations

import random
import sys
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.evaluation.grading import Grade, grade_math, time_limit
from lit_probsft.evaluation.grading.comparison import Comparison
from lit_probsft.evaluation.grading.extraction import find_answer
from lit_probsft.evaluation.grading.latex import normalize
from tests.evaluation.grading.pairs import PLAIN, PUBLIC, SYMBOLIC


def boxed(answer: str) -> str:
    return rf"Therefore $x$ is \boxed{{{answer}}}."


def right(answer: str, gold: str) -> bool:
    return grade_math(boxed(answer), gold).correct


def test_pairs_from_public_reports() -> None:
    assert [pair for pair in PUBLIC if grade_math(pair[1], pair[0]).correct != pair[2]] == []


def test_what_counts_as_equal() -> None:
    for gold, answer, correct in PLAIN:  # Comparison raises where it needs sympy
        assert Comparison().equal(normalize(gold), normalize(answer)) == correct == right(answer, gold), (gold, answer)


@pytest.mark.slow
def test_which_expressions_are_equal() -> None:
    assert [pair for pair in SYMBOLIC if right(pair[1], pair[0]) != pair[2]] == []


def test_every_gold_answer_equals_itself() -> None:
    for gold in {gold for gold, _, _ in PUBLIC + PLAIN + SYMBOLIC} - {""}:
        assert right(gold, gold), gold
        assert right(f"$ {gold} $", gold), gold


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"First \boxed{1}, then \boxed{\frac{1}{2}", None),
        (r"\boxed{7}. I wrote it into \boxed{}.", "7"),
        (r"\boxed 5", "5"),
        (r"\fbox{5}", "5"),
        (r"<think>\boxed{4}</think> The answer is 5.", "5"),
        (r"<think>\boxed{4}", None),
        (r"<think>5</think><think>\boxed{4}", None),
        ("2+2=4\n#### 1,234", "1,234"),
        ("#### Step 2\n\nIt costs 5 dollars.", "5"),
        ("#### 72 clips", "72 clips"),
        ("<answer> 5 </answer>", "5"),
        ("**Final Answer:** 73", "73"),
        ("## Final Answer\n\n**73**", "73"),
        (r"The final answer is $\frac{1}{2}$. I hope it is correct.", r"$\frac{1}{2}$"),
        ("The answer is 18 dollars per day.", "18 dollars per day"),
        ("Therefore the answer is 5 because 2+3=5.", "5"),
        ("The answer is **42** apples.", "42"),
        ("The answers are 1 and 2.", "1 and 2"),
        ("The answer is not $5$.", "not $5$"),
        ("The answer is at least 5.", "at least 5"),
        ("Natalia sold 72 clips.", "72"),
        ("The answer is approximately 3.14.", "3.14"),
        ("Answer: $x=2$ or $x=3$", "$x=2$ or $x=3$"),
        ("the answer is\n\\[\n\\{1,2\\}\n\\]", r"\{1,2\}"),
        ("The answer is (B).", "(B)"),
        ("答案是 5。", "5"),
        ("So in total she earns 18 dollars.", "18"),
        ("He pays 8 dollars every day.\n\nIn a week he pays $8 \\times 7 = 56$ dollars.", "56"),
        ("First we add 3 and 4.\n\nThat is 7, and now we multiply 7 by", None),
        ("The answer is 10 dollars.\n\nThe final answer is within \\boxed{}.", "10 dollars"),
        ("So the answer is $5 + $7 = $12.", "$5 + $7 = $12"),
        ("x = 5", "x = 5"),
        ("I do not know what this question wants.", None),
        ("", None),
    ],
)
def test_where_the_answer_is(text: str, answer: str | None) -> None:
    assert find_answer(text)[0] == answer


def test_a_grade_says_that_no_worker_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "_pool", time_limit._Pool())
    monkeypatch.setattr(sys, "executable", "/no/such/file")
    assert "cannot start: [Errno 2]" in grade_math(boxed(r"\sqrt{12}"), r"2\sqrt{3}").reason
    assert right("5", "5.0")


def test_any_of_several_golds_is_right() -> None:
    assert grade_math(boxed("2"), ["1", "2"]).correct
    assert not grade_math(boxed("3"), ["1", "2"]).correct
    assert not grade_math(boxed("3"), []).correct


def test_a_gold_that_cannot_be_parsed_is_compared_as_text() -> None:
    gold = r"$f(x)=\heartsuit)$, where $b$ is any integer"
    assert right(gold, gold)
    assert not right(r"\spadesuit)", gold)
    assert not right("f(x)=b", gold)


def test_the_tolerance_is_a_difference() -> None:
    assert grade_math(boxed("4.25"), "4.2", tolerance=0.1).correct
    assert not grade_math(boxed("4.31"), "4.2", tolerance=0.1).correct
    assert grade_math(boxed(r"3\sqrt{2}"), "4.2", tolerance=0.1).correct
    assert not grade_math(boxed("4.25"), "4.2").correct


NUMBERS = st.one_of(
    st.integers(-(10**7), 10**7).map(str),
    st.decimals(-999, 999, places=2).map(str),
    st.builds(lambda a, b: rf"\frac{{{a}}}{{{b}}}", st.integers(1, 99), st.integers(2, 99)),
)


@settings(max_examples=30, deadline=None)
@given(NUMBERS)
def test_other_ways_of_writing_a_number_are_equal(gold: str) -> None:
    number = Fraction(gold.replace(r"\frac{", "").replace("}{", "/").strip("}"))
    ways = [f"x = {gold}", rf"{gold} \text{{ meters}}", f"${gold}$", rf"\left({gold}\right)", rf"\mathbf{{{number}}}"]
    ways += [
        f"{number.numerator}/{number.denominator}",
        gold.replace("frac", "dfrac"),
        rf"\frac{{{10 * number}}}{{10}}",
    ]
    ways += [f"{int(number):,}", f"{int(number):,}".replace(",", r",\!")] if number.denominator == 1 else []
    for way in ways:
        if r"\frac{-" not in way or "/" not in way:
            assert right(way, gold), way
            assert right(gold, way), way


@settings(max_examples=30, deadline=None)
@given(NUMBERS, st.data())
def test_a_changed_number_is_wrong(gold: str, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from([k for k, c in enumerate(gold) if c.isdigit()]))
    digit = data.draw(st.sampled_from("123456789"))
    if Fraction(gold.replace(r"\frac{", "").replace("}{", "/").strip("}")):
        assert not right(gold[1:] if gold.startswith("-") else f"-{gold}", gold)
        assert not right(rf"10 \cdot {gold}" if "frac" in gold else str(10 * Fraction(gold)), gold)
    if gold[place] != digit:
        assert not right(gold[:place] + digit + gold[place + 1 :], gold)


@settings(max_examples=20, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=5, unique_by=lambda n: n.strip("-0.")), st.randoms())
def test_tuples_are_ordered_and_sets_are_not(items: list[str], draw: random.Random) -> None:
    mixed = list(items)
    draw.shuffle(mixed)
    inside, other = ", ".join(items), ", ".join(mixed)
    assert right(f"({other})", rf"\left( {inside} \right)") == (mixed == items)
    assert right(rf"\{{{other}\}}", rf"\{{{inside}\}}")
    assert right(other, inside)
    assert not right(rf"\{{{inside}\}}", f"({inside})")
    assert not right(", ".join(items[1:]), inside)


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ["(", r"\boxed{", "$", "1", "the answer is ", "answer to ", "\\", r"\[ ", "\n", " ", "1 ", "#", "*", "x+"]
)
def test_a_megabyte_takes_no_time(piece: str) -> None:
    start = time.monotonic()
    grade_math(piece * (10**6 // len(piece)), "5")
    assert time.monotonic() - start < 5


@pytest.mark.slow
def test_threads_get_the_same_grades() -> None:
    answers = [r"\frac{\sqrt{12}}{2}", "1.7320508", r"\sqrt{2}", "9^{9^{9^{9}}}"]
    grades: dict[str, Grade] = {}
    threads = [
        threading.Thread(target=lambda a=a: grades.update({a: grade_math(boxed(a), r"\sqrt3")})) for a in answers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [grades[answer].correct for answer in answers] == [True, True, False, False]
