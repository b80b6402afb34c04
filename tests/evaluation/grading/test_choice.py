"""Which choice an answer names."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.evaluation.grading import grade_choice

SETS = json.loads(Path(__file__).with_name("choices.json").read_text(encoding="utf-8"))
"""Choices, and texts by the label that they name."""
CASES = [
    (case["choices"], text, label or None) for case in SETS for label, texts in case["named"].items() for text in texts
]
FOUR, TEN = SETS[0]["choices"], SETS[1]["choices"]


def test_the_choice_that_an_answer_states() -> None:
    for choices, text, label in CASES:
        grade = grade_choice(text, label or "A", choices)
        assert (grade.extracted, grade.correct) == (label, label is not None), text
        assert not any(grade_choice(text, other, choices).correct for other in choices if other != label), text


@settings(max_examples=15)
@given(st.sampled_from(string.ascii_uppercase[:10]), st.sampled_from(string.ascii_uppercase[:10]))
def test_the_last_statement_counts(first: str, last: str) -> None:
    for statement in ("The answer is {}.", "Answer: {}\n", r"\boxed{{{}}} ", "I choose ({}). ", "**Answer: {}**\n"):
        for other in ("The answer is {}.", r"\boxed{{{}}}"):
            assert grade_choice(statement.format(first) + other.format(last), last, TEN).correct


def test_thinking_states_nothing() -> None:
    assert grade_choice("<think>The answer is A.\nB\nC</think>(B)", "B", FOUR).correct
    assert grade_choice("<think>The answer is A.", "A", FOUR).extracted is None


def test_labels_may_be_small_letters_numbers_and_several_characters() -> None:
    assert grade_choice("The answer is b.", "b", {"a": "x y", "b": "y z"}).correct
    assert grade_choice("The answer is 2.", "2", {"1": "x y", "2": "y z"}).extracted == "2"
    assert grade_choice("(10)", "10", {str(i): "" for i in range(12)}).correct
    assert grade_choice("Answer: b", "B", FOUR).extracted == "B"
    assert grade_choice("Answer: B", "b", FOUR).correct
    assert not grade_choice("B", "Z", FOUR).correct
    assert grade_choice("", "B", {}).extracted is None


def test_a_text_that_two_choices_have_names_none() -> None:
    assert grade_choice("The answer is 3.", "A", {"A": "3", "B": "3"}).extracted is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("It is A. Or B? The answer is C, not D", "C"),
        ("A, then (B)", "B"),
        ("B is better than vitamin C", "C"),
        ("A patient needs B", "B"),
        ("aspirin, no, a beta blocker", "B"),
        ("no choice", None),
    ],
)
def test_the_choice_that_is_named_last(text: str, label: str | None) -> None:
    assert grade_choice(text, label or "A", FOUR, last_named=True).extracted == label
