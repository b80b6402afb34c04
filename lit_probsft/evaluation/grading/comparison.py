"""Compares two answers in the notation of latex.py, value by value. README.md of this folder lists the rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lit_probsft.evaluation.grading.expressions import Unreadable, equal_equations, equal_expressions, within_rounding
from lit_probsft.evaluation.grading.values import Equation, Group, Leaf, Matrix, Number, Piece, Region, Value, as_region, is_name, number, parse

_CHOICE = re.compile(r"\(([A-J])\)[.:]? ?(.*)|([A-J])[).:] ?(.*)|([A-J])")
_WORDS = re.compile(r"[A-Za-z]{3,}|[^\x00-\x7f]")
_COMMAND = re.compile(r"\\(?!text)[A-Za-z]+|_\{[^{}]*\}")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_BASE = re.compile(r"\(?([0-9A-Z]+)\)?_\{(\d\d?)\}")
_UNIT = re.compile(r"(?P<value>.*[\d%}]) ?(?P<unit>(?!x\b)[A-Za-z]{2,}[A-Za-z ./^{}0-9-]*|(?<= )[A-Za-z](?:[/^ ][A-Za-z0-9 ./^{}-]*)?)")


class NeedsSymbols(Exception):  # noqa: N818: not an error
    """The comparison needs sympy, which may only run with a time limit."""


@dataclass(frozen=True)
class Comparison:
    """How two answers are compared.

    Attributes:
        tolerance: the largest difference between two numbers that counts as equal.
        symbolic: compare expressions with sympy instead of raising `NeedsSymbols`.
    """

    tolerance: float = 0.0
    symbolic: bool = False

    def equal(self, gold: str, answer: str) -> bool:
        """Whether two normalized answers are equal, in any of their readings."""
        if _squeezed(gold) == _squeezed(answer):
            return True
        (gold_letter, gold_text), (letter, text) = _choice(gold), _choice(answer)
        if gold_letter and letter:
            return gold_letter == letter
        if gold_letter and gold_text:
            gold = gold_text
        elif letter and text:
            answer = text
        if r"\approx" in answer and r"\approx" not in gold:
            exact, _, rounded = answer.partition(r"\approx")
            return any(side.strip() and self.equal(gold, side.strip()) for side in (exact, rounded.replace(r"\approx", ",")))
        readings = {thousands: parse(gold, thousands) for thousands in (True, False)}
        found = False
        for thousands, value in readings.items():
            if thousands or value != readings[True]:
                found = found or any(self.same(value, other) for other in _distinct(parse(answer), parse(answer, False)))
        return found

    def same(self, gold: Value, answer: Value) -> bool:
        """Whether two values are equal. Each kind is only equal to its own, apart from the rules of the README."""
        if gold == answer:
            return True
        if isinstance(gold, Region) or isinstance(answer, Region):
            one, other = as_region(gold), as_region(answer)
            return one is not None and other is not None and self._unordered(one.pieces, other.pieces)
        if isinstance(gold, Equation) or isinstance(answer, Equation):
            return self._equations(gold, answer)
        if isinstance(gold, Matrix) or isinstance(answer, Matrix):
            return isinstance(gold, Matrix) and isinstance(answer, Matrix) and self._ordered(gold.rows, answer.rows)
        if isinstance(gold, Group) or isinstance(answer, Group):
            return self._groups(gold, answer)
        return self._leaves(gold, answer)

    def _same_item(self, gold: Value | Piece, answer: Value | Piece) -> bool:
        if isinstance(gold, Piece) or isinstance(answer, Piece):
            assert isinstance(gold, Piece)
            assert isinstance(answer, Piece)
            closed = (gold.low_closed, gold.high_closed) == (answer.low_closed, answer.high_closed)
            return closed and self.same(gold.low, answer.low) and self.same(gold.high, answer.high)
        return self.same(gold, answer)

    def _ordered(self, gold: Sequence[Value], answer: Sequence[Value]) -> bool:
        return len(gold) == len(answer) and all(self.same(g, a) for g, a in zip(gold, answer, strict=True))

    def _unordered(self, gold: Sequence[Value | Piece], answer: Sequence[Value | Piece]) -> bool:
        if len(gold) != len(answer):
            return False
        left = list(answer)
        for item in gold:
            match = next((k for k, other in enumerate(left) if self._same_item(item, other)), None)
            if match is None:
                return False
            del left[match]
        return True

    def _groups(self, gold: Value, answer: Value) -> bool:
        if not (isinstance(gold, Group) and isinstance(answer, Group)):
            group, single = (gold, answer) if isinstance(gold, Group) else (answer, gold)
            return isinstance(group, Group) and group.brackets == "{}" and len(group.items) == 1 and self.same(group.items[0], single)
        kinds = {gold.brackets, answer.brackets}
        if kinds <= {"", "{}"} and not any(item == Leaf(r"\ldots") for item in gold.items):
            return self._unordered(gold.items, answer.items)
        lists = kinds == {"", "()"} or (kinds == {"", "[]"} and len(gold.items) > 2)
        return (len(kinds) == 1 or kinds == {"", "{}"} or lists) and self._ordered(gold.items, answer.items)

    def _equations(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, Equation) and isinstance(answer, Equation):
            if _squeezed(gold.left + "=" + gold.right) == _squeezed(answer.right + "=" + answer.left):
                return True
            names = is_name(gold.left), is_name(answer.left)
            if _squeezed(gold.left) == _squeezed(answer.left) or (all(names) and any(_WORDS.search(e.left) for e in (gold, answer))):
                return self.same(parse(gold.right, False), parse(answer.right, False))
            renamed = _renamed(gold, answer)
            if renamed is not None:
                return self.same(parse(gold.right, False), parse(renamed, False))
            if all(names) and not any(re.search("[A-Za-z]", number(e.right).text if number(e.right) else e.right) for e in (gold, answer)):
                return False
            if not self.symbolic:
                raise NeedsSymbols
            try:
                return equal_equations((gold.left, gold.right), (answer.left, answer.right))
            except Unreadable:
                return False
        if isinstance(gold, Equation):
            return is_name(gold.left) and self.same(parse(gold.right, False), answer)
        assert isinstance(answer, Equation)
        names_or_computes = is_name(answer.left) or not re.search("[A-Za-z]", _COMMAND.sub("", answer.left))
        return names_or_computes and self.same(gold, parse(answer.right, False))

    def _leaves(self, gold: Value, answer: Value) -> bool:
        one, other = _text(gold), _text(answer)
        if _squeezed(one) == _squeezed(other):
            return True
        if isinstance(gold, Number) and isinstance(answer, Number):
            return self._numbers(gold, answer)
        for sign, factor in (("%", Fraction(1, 100)), (r"\degree", None)):
            if _TRIGONOMETRY.search(one + other):
                break
            if one.endswith(sign) and other.endswith(sign):
                return self.same(_single(one.removesuffix(sign)), _single(other.removesuffix(sign)))
            for text, rest in ((one, other), (other, one)):
                bare = text.removesuffix(sign).strip()
                if bare != text and bare:
                    scaled = _scaled(bare, factor)
                    pairs = [(bare, rest), (scaled, rest)] if text is one else [(rest, bare), (rest, scaled)]
                    return any(self.same(_single(g), _single(a)) for g, a in pairs)
        if (unit := _UNIT.fullmatch(other)) and not _UNIT.fullmatch(one):
            return self.same(gold, _single(unit["value"]))
        if (unit := _UNIT.fullmatch(one)) and len(unit["unit"]) > 1:
            stripped = _UNIT.fullmatch(other)
            return self.same(_single(unit["value"]), _single(stripped["value"]) if stripped else answer)
        if _are_words(one) or _are_words(other):
            return _folded(one) == _folded(other) != ""
        bases = _BASE.fullmatch(one), _BASE.fullmatch(other)
        if any(bases):
            return all(bases) and _from_base(*bases[0].groups()) == _from_base(*bases[1].groups())  # type: ignore[union-attr]
        if not self.symbolic:
            raise NeedsSymbols
        return self._expressions(gold, answer)

    def _numbers(self, gold: Number, answer: Number) -> bool:
        if gold.value == answer.value or abs(gold.value - answer.value) <= Fraction(self.tolerance):
            return True
        for decimal, exact, fewest in ((gold, answer, _FEWEST_IN_GOLD), (answer, gold, _FEWEST_IN_ANSWER)):
            if decimal.digits is not None and decimal.digits >= fewest and exact.digits is None and _never_ends(exact.value):
                return abs(decimal.value - exact.value) <= _half_unit(decimal)
        return False

    def _expressions(self, gold: Value, answer: Value) -> bool:
        try:
            for decimal, exact, fewest in ((gold, answer, _FEWEST_IN_GOLD), (answer, gold, _FEWEST_IN_ANSWER)):
                if isinstance(decimal, Number):
                    enough = decimal.digits is not None and decimal.digits >= fewest
                    error = max(_half_unit(decimal) if enough else Fraction(0), Fraction(self.tolerance))
                    if error and within_rounding(_text(exact), decimal.value, error):
                        return True
            return equal_expressions(_expression(gold), _expression(answer))
        except Unreadable:
            return False


def compare(gold: str, answer: str, tolerance: float) -> bool:
    """Whether two normalized answers are equal. Needs a time limit."""
    return Comparison(tolerance, symbolic=True).equal(gold, answer)


_FEWEST_IN_GOLD, _FEWEST_IN_ANSWER = 3, 5
"""The fewest significant digits with which a decimal stands for a number that no decimal is."""


def _squeezed(text: str) -> str:
    return text.replace(" ", "")


def _distinct(*values: Value) -> list[Value]:
    return [value for k, value in enumerate(values) if value not in values[:k]]


def _choice(text: str) -> tuple[str, str]:
    """The letter and the text of a choice such as `(B) 5`; two empty texts for anything else."""
    match = _CHOICE.fullmatch(re.sub(r"\\text\{(\(?[A-J]\)?[.:]?) ?(.*)\}$", r"\1 \2", text).strip())
    if match is None:
        return "", ""
    letter = match[1] or match[3] or match[5]
    return letter, (match[2] or match[4] or "").strip()


def _single(text: str) -> Value:
    return parse(text, False)


def _text(value: Value) -> str:
    return value.text if isinstance(value, Number | Leaf) else ""


def _expression(value: Value) -> str:
    if isinstance(value, Number):
        return rf"\frac{{{value.value.numerator}}}{{{value.value.denominator}}}"
    return _text(value)


def _scaled(text: str, factor: Fraction | None) -> str:
    found = number(text)
    if factor and found:
        return str(found.value * factor)
    return rf"({text}) \cdot " + (str(factor) if factor else r"\frac{\pi}{180}")


def _are_words(text: str) -> bool:
    return r"\text" in text or _WORDS.search(_COMMAND.sub(" ", text)) is not None


def _folded(text: str) -> str:
    return " ".join(re.sub(r"\\text|[^\w+-]", " ", text).casefold().split())


def _from_base(digits: str, base: str) -> int | None:
    try:
        return int(digits, int(base))
    except ValueError:
        return None


def _half_unit(decimal: Number) -> Fraction:
    return Fraction(10) ** -decimal.places / 2


def _never_ends(value: Fraction) -> bool:
    """Whether the decimal expansion is infinite."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest > 1


def _renamed(gold: Equation, answer: Equation) -> str | None:
    """The right side of the answer's f(t) = ... with the gold's letter for t; None if they are no functions of one letter."""
    sides = [re.fullmatch(r"[A-Za-z]\(([a-z])\)", _squeezed(e.left)) for e in (gold, answer)]
    if not (sides[0] and sides[1]):
        return None
    old, new = sides[1][1], sides[0][1]
    return re.sub(r"\\[A-Za-z]+|[A-Za-z]", lambda m: {old: new, new: old}.get(m[0], m[0]), answer.right)
