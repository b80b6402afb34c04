"""Whatever a model writes, a grader grades it, in time."""

from __future__ import annotations

import inspect
import os
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.evaluation import grading
from lit_probsft.evaluation.grading import Grade
from lit_probsft.evaluation.grading.extraction import after_thinking

DRAWS = int(os.environ.get("DRAWS", "100000"))
GRADERS = [getattr(grading, name) for name in grading.__all__ if name != "Grade"]
MATH = r"""
\boxed{ \boxed{B} \fbox{ { } } ( ) [ ] \left( \right] \{ \} | \text{ \textbf{ \frac \frac{1}{2} \dfrac \sqrt \sqrt[3]{
\pi \infty \cup \ldots \cdots \pm \le < = ^ _ ^{ _8 ^\circ \% % ! 9^{9^{9^9}} \begin{pmatrix} & \\ \end{pmatrix} $ $$
\int_0^1 \sum_{n=1}^\infty \lim_{x\to0} \log_2 \sin x dx \binom{5}{2} \mathbb{R} x,y 1e999 0.3333 10{,}000 1/0 -
\overline{3} \approx \degree \lfloor \mid 999999999 !! f(x) \R \ne <think> </think> km ' : ; ** ^{100000} 1,000"""
WORDS = "A B C D E I J a b yes no maybe (A) B) C. **D** or and not is #### <answer> </answer> é ½ ٣ ， − \u200b \ud800"
PHRASES = [
    "The answer is ",
    "Answer: ",
    "Final Answer: **",
    "I choose ",
    " ",
    "\n",
    "\0",
    "9" * 50,
    "(" * 60,
    "x" * 300,
]
PIECES = [*MATH.split(), *WORDS.split(), *PHRASES]
VALUES: dict[str, Callable[[random.Random], Any]] = {
    "answer": lambda draw: text(draw),
    "gold": lambda draw: text(draw) if draw.random() < 0.7 else draw.choice(["A", "1", r"\frac12", "(1,2)", "yes"]),
    "choices": lambda draw: {
        draw.choice("ABCDEFGHIJab1") if i else "A": text(draw, 4) for i in range(draw.randrange(6))
    },
    "a": lambda draw: text(draw),
    "b": lambda draw: text(draw),
    "tolerance": lambda draw: draw.choice([0.0, 0.01]),
    "variant": lambda draw: draw.choice(["rapidfuzz", "paper"]),
}
"""How to draw each parameter of a grader; switches are drawn too."""


def text(draw: random.Random, most: int = 12) -> str:
    if draw.random() < 0.3:
        return draw.randbytes(draw.randrange(5 * most)).decode(draw.choice(["latin-1", "utf-16"]), "replace")
    return "".join(draw.choice(PIECES) for _ in range(draw.randrange(most)))


def wrong(grader: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """What is wrong with how a grader takes the arguments; empty if nothing is."""
    start = time.monotonic()
    try:
        result = grader(**arguments)
    except Exception as error:
        return f"{grader.__name__}({arguments}) raises {error!r}"
    if (seconds := time.monotonic() - start) > 20:
        return f"{grader.__name__}({arguments}) takes {seconds:.0f} s"
    if isinstance(result, float):
        return "" if 0 <= result <= 1 else f"{grader.__name__}({arguments}) is {result}"
    fine = isinstance(result, Grade) and (result.extracted is not None or not result.correct) and result.reason
    return (
        ""
        if fine or not (after_thinking(arguments["answer"]) or "").strip()
        else f"{grader.__name__}({arguments}) is {result}"
    )


def arguments(grader: Callable[..., Any], draw: random.Random) -> dict[str, Any]:
    drawn = {}
    for name, parameter in inspect.signature(grader).parameters.items():
        if name in VALUES:
            drawn[name] = VALUES[name](draw)
        else:
            assert isinstance(parameter.default, bool), f"add {name} of {grader.__name__} to VALUES"
            drawn[name] = draw.random() < 0.5
    return drawn


def problems(seeds: Iterable[int]) -> str:
    found = (
        (seed, wrong(grader := GRADERS[seed % len(GRADERS)], arguments(grader, random.Random(seed)))) for seed in seeds
    )
    return "\n".join(f"seed {seed}: {problem}" for seed, problem in found if problem)


def test_no_text_breaks_a_grader() -> None:
    found = problems(range(200))
    assert not found, found


@pytest.mark.slow
def test_none_of_many_texts_breaks_a_grader() -> None:
    found = problems(range(DRAWS))
    assert not found, found


@settings(max_examples=25, deadline=None)
@given(st.text(), st.text(), st.dictionaries(st.text(max_size=3), st.text(max_size=10), max_size=5))
def test_no_unicode_breaks_a_grader(answer: str, gold: str, choices: dict[str, str]) -> None:
    values = {"answer": answer, "gold": gold, "choices": choices, "a": answer, "b": gold}
    for grader in GRADERS:
        known = {name: values[name] for name in inspect.signature(grader).parameters if name in values}
        assert not (problem := wrong(grader, known)), problem


@pytest.mark.parametrize("pieces", [PIECES[::50], pytest.param(PIECES, marks=pytest.mark.slow)], ids=["few", "all"])
def test_a_long_answer_takes_seconds_at_most(pieces: list[str]) -> None:
    for piece in (*pieces, "the answer is A or ", " \n"):
        for grader in GRADERS:
            drawn = arguments(grader, random.Random(0))
            drawn |= {name: piece * (20_000 // len(piece)) for name in ("answer", "a", "b") if name in drawn}
            assert not (problem := wrong(grader, drawn)), problem[:500]
