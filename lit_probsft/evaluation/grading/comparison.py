"""Compares two answers in the notation of latex.py, value by value. README.md lists the rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType

from lit_probsft.evaluation.grading.values import (
    NO_UNIT,
    Equation,
    Group,
    Leaf,
    Number,
    Value,
    as_union,
    is_name,
    measure,
    number,
    parse,
)

_FEWEST_DIGITS = (3, 5)
"""The fewest significant digits a decimal needs to equal a number without an end: in a gold, in an answer."""
_CHOICE = re.compile(r"\(([A-J])\)[.:]? ?(.*)|([A-J])[).:] ?(.*)|([A-J])")
_WORDS = re.compile(r"[A-Za-z]{3,}|[^\x00-\x7f]|\\text")
_COMMAND = re.compile(r"\\(?!text)[A-Za-z]+|_\{[^{}]*\}")
_UNIT = re.compile(
    r"(?P<value>(?:[^A-Za-z\\]|\\(?:frac|cdot|sqrt|pi)(?![a-z]))*[\d%} ]) ?"
    r"(?P<unit>(?:cm|mm|km|nm|kg|mg|mL|ml|ft|in|yd|mi|lb|oz|hr|Hz|eV|pm|am|Pa|kJ|kW)(?![A-Za-z])"
    r"|(?<= )(?:"
    + NO_UNIT
    + r"[A-Za-z]{3,}(?: [A-Za-z]+)*|[msgNJKWVALh](?![A-Za-z])))(?: ?/ ?[A-Za-z]+| ?\^ ?\{-?\d\})*\.?"
)
_ARGUMENTS = re.compile(r"(?<=[A-Za-z])\([^()]*\)")
_ANGLES = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_SIGNS = {"%": r"\cdot \frac{1}{100}", r"\degree": r"\cdot \frac{\pi}{180}"}


class NeedsSymbols(Exception):
    """The comparison needs sympy, and therefore a time limit."""


@dataclass(frozen=True)
class Comparison:
    """How two answers are compared.

    Attributes:
        tolerance: the largest difference between two numbers that counts as equal.
        expressions: the module that compares expressions; without it they raise `NeedsSymbols`.
    """

    tolerance: float = 0.0
    expressions: ModuleType | None = None

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two normalized answers are equal in any of their readings."""
        if squeezed(gold) == squeezed(answer):
            return bool(gold)
        (gold_letter, gold_text), (letter, text) = _choice(gold), _choice(answer)
        if gold_letter and letter:
            return gold_letter == letter
        gold, answer = gold_text or gold, text or answer
        if r"\approx" in answer and r"\approx" not in gold:
            exact, _, rounded = answer.partition(r"\approx")
            return any(self.equal(gold, side.strip()) for side in (exact, rounded) if side.strip())
        for sign, factor in _SIGNS.items():
            if sign in gold + answer and not _ANGLES.search(gold + answer):
                bare = self.equal(gold.replace(sign, ""), answer.replace(sign, ""))
                one_sided = (sign in gold) != (sign in answer)
                return bare or (one_sided and self.equal(gold.replace(sign, factor), answer.replace(sign, factor)))
        one, other = measure(gold), measure(answer)
        if one and other and one[0] == other[0]:
            if one[2] and other[2]:
                return self._numbers(one[2], other[2])
            if one[1] != other[1]:
                return False
        golds, answers = ({parse(side, thousands): None for thousands in (True, False)} for side in (gold, answer))
        return any(self.same(one, other) for one in golds for other in answers)

    def same(self, gold: Value, answer: Value) -> bool:
        """Whether two values are equal."""
        if gold == answer or Leaf("") in (gold, answer):
            return gold == answer != Leaf("")
        if isinstance(gold, Equation) or isinstance(answer, Equation):
            return self._equations(gold, answer)
        if isinstance(gold, Group) or isinstance(answer, Group):
            return self._groups(gold, answer)
        if isinstance(gold, Number) and isinstance(answer, Number):
            return self._numbers(gold, answer)
        return self._leaves(gold, answer)

    def _equations(self, gold: Value, answer: Value) -> bool:
        if not isinstance(gold, Equation):
            assert isinstance(answer, Equation)
            left = _COMMAND.sub("", answer.left)
            computed = not re.search("[A-Za-z]", left)  # 2+3=5
            asked_for = not re.search(r"\d|^-", _ARGUMENTS.sub("", left))  # m+n=5, f(2)=5, but not 2x=5
            return (computed or asked_for) and self.same(gold, parse(answer.right))
        if not isinstance(answer, Equation):
            return is_name(gold.left) and self.same(parse(gold.right), answer)
        if (squeezed(gold.left), squeezed(gold.right)) == (squeezed(answer.right), squeezed(answer.left)):
            return True
        names = is_name(gold.left) and is_name(answer.left)
        if squeezed(gold.left) == squeezed(answer.left) or (names and _WORDS.search(gold.left + " " + answer.left)):
            return self.same(parse(gold.right), parse(answer.right))
        if (renamed := _renamed(gold, answer)) is not None:
            return self.same(parse(gold.right), parse(renamed))
        if names and number(gold.right) and number(answer.right):
            return False
        return bool(self._symbols().equal_equations((gold.left, gold.right), (answer.left, answer.right)))

    def _groups(self, gold: Value, answer: Value) -> bool:
        kinds = {value.kind if isinstance(value, Group) else None for value in (gold, answer)}
        if "union" in kinds:
            one, other = as_union(gold), as_union(answer)
            return one is not None and other is not None and self._unordered(one.items, other.items)
        ones, others = (value.items if isinstance(value, Group) else (value,) for value in (gold, answer))
        if None in kinds:
            return "{}" in kinds and len(ones) == len(others) == 1 and self.same(ones[0], others[0])
        if kinds <= {"", "{}"} and Leaf(r"\ldots") not in ones:
            return self._unordered(ones, others)
        lists = kinds in ({"", "{}"}, {"", "()"}) or (kinds == {"", "[]"} and len(ones) > 2)
        return (len(kinds) == 1 or lists) and self._ordered(ones, others)

    def _ordered(self, gold: Sequence[Value], answer: Sequence[Value]) -> bool:
        return len(gold) == len(answer) and all(self.same(g, a) for g, a in zip(gold, answer, strict=True))

    def _unordered(self, gold: Sequence[Value], answer: Sequence[Value]) -> bool:
        left = list(answer)
        for item in gold if len(gold) == len(answer) else ():
            match = next((k for k, other in enumerate(left) if self.same(item, other)), None)
            if match is None:
                return False
            del left[match]
        return not left

    def _numbers(self, gold: Number, answer: Number) -> bool:
        difference = abs(gold.value - answer.value)
        if difference <= Fraction(self.tolerance):
            return True
        exact = answer if gold.digits else gold
        return _never_ends(exact.value) and difference <= _rounding(gold, answer)

    def _leaves(self, gold: Number | Leaf, answer: Number | Leaf) -> bool:
        one, other = gold.text, answer.text
        if squeezed(one) == squeezed(other):
            return True
        gold_unit, unit = _UNIT.fullmatch(one), _UNIT.fullmatch(other)
        if (unit and not gold_unit) or (gold_unit and len(gold_unit["unit"]) > 1):
            return self.same(parse(gold_unit["value"] if gold_unit else one), parse(unit["value"] if unit else other))
        if any(_WORDS.search(_COMMAND.sub(" ", text)) for text in (one, other)):
            return _folded(one) == _folded(other) != ""
        symbols = self._symbols()
        error = max(_rounding(gold, answer), Fraction(self.tolerance))
        for decimal, exact in ((gold, answer), (answer, gold)):
            if isinstance(decimal, Number) and error and symbols.within(exact.text, decimal.value, error):
                return True
        return bool(symbols.equal_expressions(_expression(gold), _expression(answer)))

    def _symbols(self) -> ModuleType:
        if self.expressions is None:
            raise NeedsSymbols
        return self.expressions


def squeezed(text: str) -> str:
    """Without the spaces that mean nothing: `11 5/6` is not `115/6`."""
    return re.sub(r"(?<!\d) +| +(?!\d)", "", text)


def _rounding(gold: Number | Leaf, answer: Number | Leaf) -> Fraction:
    """Half a unit in the last place if exactly one side is a decimal, with enough digits; else 0."""
    for fewest, decimal, exact in zip(_FEWEST_DIGITS, (gold, answer), (answer, gold), strict=True):
        if isinstance(decimal, Number) and decimal.digits >= fewest and not getattr(exact, "digits", 0):
            return decimal.unit / 2
    return Fraction(0)


def _never_ends(value: Fraction) -> bool:
    """Whether the decimal expansion is infinite."""
    return bool(10 ** value.denominator.bit_length() % value.denominator)


def _expression(leaf: Number | Leaf) -> str:
    return rf"\frac{{{leaf.value.numerator}}}{{{leaf.value.denominator}}}" if isinstance(leaf, Number) else leaf.text


def _choice(text: str) -> tuple[str, str]:
    """The letter and the text of a choice such as `(B) 5`; two empty texts for anything else."""
    match = _CHOICE.fullmatch(re.sub(r"\\text\{(\(?[A-J]\)?[.:]?) ?(.*)\}$", r"\1 \2", text).strip())
    groups = match.groups() if match else ()
    return next((g for g in groups[::2] if g), ""), next((g for g in groups[1::2] if g), "")


def _folded(text: str) -> str:
    return " ".join(re.sub(r"\\text|[^\w+-]", " ", text).casefold().split())


def _renamed(gold: Equation, answer: Equation) -> str | None:
    """The right side of the answer's f(t) with the gold's letter for t; None if the two define no such function f."""
    sides = [re.fullmatch(r"([A-Za-z])\(([a-z])\)", squeezed(e.left)) for e in (gold, answer)]
    if not (sides[0] and sides[1] and sides[0][1] == sides[1][1]):
        return None
    swap = {sides[1][2]: sides[0][2], sides[0][2]: sides[1][2]}
    return re.sub(r"\\[A-Za-z]+|[A-Za-z]", lambda m: swap.get(m[0], m[0]), answer.right)
