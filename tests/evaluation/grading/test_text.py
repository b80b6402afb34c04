"""Texts that are equal, or nearly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.evaluation.grading import grade_exact, jaro_winkler

WORDS = st.text("abcABC \n", max_size=12)


def jaro(a: str, b: str) -> float:
    """Jaro's similarity, as its definition says."""
    if not a and not b:
        return 1.0
    window = max(len(a), len(b), 2) // 2 - 1
    partners: list[int] = []
    for i, letter in enumerate(a):
        free = (j for j in range(len(b)) if abs(i - j) <= window and b[j] == letter and j not in partners)
        partners.append(next(free, -1))
    in_a = [a[i] for i, j in enumerate(partners) if j >= 0]
    in_b = [b[j] for j in sorted(partners) if j >= 0]
    common, swapped = len(in_a), sum(x != y for x, y in zip(in_a, in_b, strict=True)) // 2
    return (common / len(a) + common / len(b) + (common - swapped) / common) / 3 if common else 0.0


def winkler(a: str, b: str, above: float) -> float:
    similarity, prefix = jaro(a, b), 0
    while prefix < min(4, len(a), len(b)) and a[prefix] == b[prefix]:
        prefix += 1
    return similarity + 0.1 * prefix * (1 - similarity) if similarity > above else similarity


@settings(max_examples=100)
@given(WORDS, WORDS)
def test_jaro_winkler_equals_its_definition(a: str, b: str) -> None:
    assert jaro_winkler(a, b) == pytest.approx(winkler(a, b, 0.7), abs=1e-12)
    paper = winkler(a.strip().lower(), b.strip().lower(), -1)
    assert jaro_winkler(a, b, "paper") == pytest.approx(paper, abs=1e-12)


def test_the_variants_differ_where_texts_are_unlike() -> None:
    assert jaro_winkler("abcd", "axyz") == pytest.approx(0.5)
    assert jaro_winkler("abcd", "axyz", variant="paper") == pytest.approx(0.55)
    assert jaro_winkler("Abc ", "abc", variant="paper") == 1 > jaro_winkler("Abc ", "abc")


@settings(max_examples=50)
@given(WORDS, st.lists(WORDS, max_size=3))
def test_an_exact_answer_is_one_of_the_gold_texts(answer: str, gold: list[str]) -> None:
    assert grade_exact(answer, gold).correct == (answer.strip() in [text.strip() for text in gold])
    assert grade_exact(answer, answer).correct
    assert grade_exact(answer, gold).extracted == (answer.strip() or None)
    assert grade_exact(answer.upper(), answer, ignore_case=True).correct
    assert grade_exact(" ".join(answer), answer, ignore_whitespace=True).correct
    for option in ("ignore_case", "ignore_whitespace"):
        assert grade_exact(answer, gold, **{option: True}).correct >= grade_exact(answer, gold).correct
    assert not grade_exact("a", "A").correct
    assert not grade_exact("a b", "ab").correct
    assert grade_exact(f"<think>{answer}</think>\n{answer}", answer).correct
    assert grade_exact(f"<think>{answer}", f"<think>{answer}").extracted is None
