r"""Decides whether expressions are equal: math-verify's parser reads them, mpmath evaluates them at the same points.

math-verify's own comparison rounds to six decimals. Here the two values must agree at every point to 30 digits, and to
more if a part is large or small: 2^{2023} is not 2^{2023}-1. Letters are positive numbers; for positive integers,
apart from x, y and z, if there are factorials, binomials, floors or powers of -1; also for negative numbers if there is
an absolute value. `i` is the imaginary unit, `e` Euler's number, and an odd root of a negative number is real.

sympy and mpmath know no time limit, and importing them takes a second: import this module only in a worker process.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mpmath
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

_MOST_DIGITS = 400
_LARGEST = 10_000
"""Digits of the largest number."""
_POINTS = 8
_CONFIG = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
_REFUSED = re.compile(rf"\d{{{_MOST_DIGITS}}}|\d \d|\d ?_|[%=<>:\"&#@\x02]|\\(?:text|ldots|approx|begin)")
_WHOLE = re.compile(r"!|\\binom|\\lfloor|\\lceil|\(-1\) ?\^")


class Unreadable(ValueError):
    """The text is no expression, or too large."""


def _power(base: Any, exponent: Any) -> Any:
    with mpmath.workdps(15):
        if base and abs(exponent) * abs(mpmath.log10(base)) > _LARGEST:
            raise Unreadable("power")
    return mpmath.power(base, exponent)


def _factorial(value: Any) -> Any:
    if abs(value) > 3000:  # 9,131 digits
        raise Unreadable("factorial")
    return mpmath.factorial(value)


_FUNCTIONS = {
    "Abs": abs,
    "ceiling": mpmath.ceil,
    "UnevaluatedExpr": mpmath.mpmathify,
    "Max": lambda *values: max(values),
    "Min": lambda *values: min(values),
    "Pi": lambda: +mpmath.pi,
    "Exp1": lambda: +mpmath.e,
    "ImaginaryUnit": lambda: mpmath.mpc(0, 1),
    "Add": lambda *values: mpmath.fsum(values),
    "Mul": lambda *values: mpmath.fprod(values),
    "Pow": _power,
    "factorial": _factorial,
    "exp": lambda exponent: _power(+mpmath.e, exponent),
}


def equal_expressions(one: str, other: str) -> bool:
    """Whether two normalized expressions can be evaluated and are equal at every point."""
    values = _values([one, other])
    return bool(values) and all(_close(*pair) for pair in values)


def equal_equations(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether left - right of two equations has the same ratio, other than 0, at every point."""
    ratios = [(a - b) / (c - d) for a, b, c, d in _values([*one, *other]) if not _close(c, d)]
    return len(ratios) > 1 and all(_close(ratio, ratios[0]) and abs(ratio) > 1e-20 for ratio in ratios)


def within(expression: str, number: Fraction, error: Fraction) -> bool:
    """Whether a normalized expression without letters is at most `error` away from a number."""
    values = _values([expression])
    return len(values) == 1 and bool(abs(values[0][0] - _mpf(number)) <= _mpf(error))


def _values(texts: list[str]) -> list[list[Any]]:
    """The values of normalized expressions at each point where all have one: one point if there are no letters.

    Empty if one cannot be parsed or evaluated. Sets mpmath's precision: if the parts of the expressions have up to m
    digits before or after the point, 60 + 3 m digits, so that `_close` sees a difference of 10^(-2 m).
    """
    try:
        expressions = [_read(text) for text in texts]
        points = [*_points(sorted(set().union(*(_letters(e) for e in expressions))), "".join(texts))]
        mpmath.mp.dps = 60
        sizes: list[int] = [0]
        _at_points(expressions, points, sizes)
        mpmath.mp.dps += 3 * max(sizes)
        return _at_points(expressions, points, sizes)
    except Unreadable:
        return []


def _at_points(expressions: list[Any], points: list[dict[str, Any]], sizes: list[int]) -> list[list[Any]]:
    """The values at each point where all have one. Appends to `sizes` as `_value` does."""
    found = []
    for point in points:
        with contextlib.suppress(ArithmeticError):
            values = [_value(expression, point, sizes) for expression in expressions]
            if all(mpmath.isfinite(value) for value in values):
                found.append(values)
    return found


def _points(letters: list[str], text: str) -> Iterator[dict[str, Any]]:
    draw = random.Random(0)
    for number in range(_POINTS if letters else 1):
        point: dict[str, Any] = {}
        for letter in letters:
            whole = letter not in ("x", "y", "z") and _WHOLE.search(text)
            value = draw.randint(1, 12) if whole else Fraction(draw.randint(300_000, 3_000_000), 10**6)
            point[letter] = _mpf(Fraction(-value if "|" in text and (number + len(point)) % 2 else value))
        yield point


def _close(a: Any, b: Any) -> bool:
    """Whether two values agree to 30 digits after the point, and two thirds of those beyond."""
    return bool(abs(a - b) < mpmath.mpf(10) ** (10 - 2 * mpmath.mp.dps // 3))


def _letters(expression: Any) -> set[str]:
    return {str(symbol) for symbol in expression.free_symbols} - {"i"}


def _mpf(value: Fraction) -> Any:
    return mpmath.mpf(value.numerator) / value.denominator


@functools.lru_cache(1000)
def _read(text: str) -> Any:
    """The unevaluated sympy expression of a normalized text."""
    if _REFUSED.search(text):
        raise Unreadable(text)
    for pattern, replacement in _EXPLICIT:
        text = pattern.sub(replacement, text)
    try:
        read = latex2sympy(text, normalization_config=None, conversion_config=_CONFIG)
        _letters(read)
    except Exception as error:  # the parser raises plain exceptions, and not every result is an expression
        raise Unreadable(text) from error
    return read


def _fraction(decimal: re.Match[str]) -> str:
    value = Fraction(decimal[0])
    return rf"(\frac{{{value.numerator}}}{{{value.denominator}}})"


def _mixed(number: re.Match[str]) -> str:
    whole, top, bottom = number.groups()
    fraction = rf"\frac{{{top}}}{{{bottom}}}"
    return f"({whole}+{fraction})" if int(top) < int(bottom) else rf"{whole}\cdot {fraction}"


def _prime(letter: re.Match[str]) -> str:
    return f"{letter[1]}_{{{letter[2] or ''}{'p' * len(letter[3])}}}"


_EXPLICIT: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        # what the parser does not know, or takes for something else
        (r"\\degree", r"\\cdot \\frac{\\pi}{180} "),
        (r"(?<![\d}])(\d+) ?\\frac\{(\d+)\}\{(\d+)\}", _mixed),
        (r"\\([a-z]+) (?=\^)", r"\\\1"),
        (r"\d+\.\d+", _fraction),
        (r"_\{([^{}]*)\}", lambda m: f"_{{{re.sub('[^A-Za-z0-9]', '', m[1])}}}"),
        (r"([A-Za-z])(?:_\{(\w*)\})?('+)", _prime),
        (r"(?<![\\A-Za-z])E(?![a-z])", r"\\Xi "),
        (r"\\([gG]amma)(?![a-z])", r"\\nu_{\1}"),
        (r"(\\sqrt\[[^\[\]]*\])|(\[|\\\{)|\]|\\\}", lambda m: m[1] or ("(" if m[2] else ")")),
        # products and factorials that the parser misreads
        (r"(\w+|\([^()]*\)) ?!(?= ?\^)", r"(\1!)"),
        (r"(?<=[\d)]) ?\(", r"\\cdot ("),
        (r"(?<=\)) ?(?=[\dA-Za-z\\])(?!\\(?:cdot|rfloor|rceil))", r"\\cdot "),
        (r"(\\[a-z]+ ?[_^] ?\{[^{}]*\} ?\d)|(?<=\}) ?(?=\d)", lambda m: m[1] or r"\cdot "),
    ]
]


def _value(node: Any, point: dict[str, Any], sizes: list[int]) -> Any:
    """The number that an unevaluated sympy expression is at a point; sympy would compute towers of powers exactly.

    Appends the digits of the number and of its parts to `sizes`.

    Raises:
        Unreadable: it has no value, or one that is too large.
        ArithmeticError: the point is outside the domain.
    """
    name = type(node).__name__
    if node.is_Symbol:
        return mpmath.mpc(0, 1) if str(node) == "i" else point[str(node)]
    if node.is_Rational:
        return mpmath.mpf(int(node.p)) / int(node.q)
    function = _FUNCTIONS.get(name) or (getattr(mpmath, name, None) if node.args and name.islower() else None)
    if name == "Derivative":
        return _unknown(str(node))
    if any(kind.__name__ == "AppliedUndef" for kind in type(node).__mro__):
        function = functools.partial(_unknown, str(node.func))
    if function is None:
        raise Unreadable(name)
    values = [_value(argument, point, sizes) for argument in node.args]
    try:
        exponent = node.args[1] if name == "Pow" and node.args[1].is_Rational else None
        if exponent is not None and exponent.q % 2 and isinstance(values[0], mpmath.mpf) and values[0] < 0:
            value = (-1) ** int(exponent.p) * function(-values[0], values[1])
        else:
            value = function(*values)
    except (TypeError, KeyError, NotImplementedError) as error:
        raise Unreadable(name) from error
    except Unreadable:
        raise
    except ValueError as error:
        raise ArithmeticError(name) from error
    if mpmath.isnormal(value):
        sizes.append(abs(int(mpmath.mag(value))) * 3 // 10)
        if sizes[-1] > _LARGEST:
            raise Unreadable("size")
    return value


def _unknown(name: str, *values: Any) -> Any:
    """A function without a definition: any fixed one that tells names and arguments apart."""
    return 2 + mpmath.sin(zlib.crc32(name.encode()) % 997 + sum(value / (2 + k) for k, value in enumerate(values)))
