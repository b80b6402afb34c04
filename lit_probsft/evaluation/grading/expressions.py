r"""Decides whether two expressions are equal: math-verify's parser reads them, and mpmath evaluates them at the same points.

math-verify's own comparison rounds to six decimals and simplifies without a limit. Here two expressions are equal if 30 digits of
their values agree at every point. Letters stand for positive numbers; also for negative ones if an absolute value occurs; for positive
integers if floor, ceiling, factorials, binomials or powers of -1 occur. `i` is the imaginary unit, `e` is Euler's number.

Run it with a time limit: sympy and mpmath have none.
"""

from __future__ import annotations

import re
import zlib
from fractions import Fraction
from typing import Any

LONGEST_NUMBER = 400
"""The most digits of one number. Larger ones are compared as text."""
_DEEPEST = 40
_LARGEST_FACTORIAL = 10**5
_LARGEST_EXPONENT = 10**7
_DIGITS, _MORE_DIGITS, _AGREEING = 60, 160, 30
_GENERIC = (
    ("1.7320508", "0.6457513", "2.2360679", "1.3166247", "0.8284271", "3.6055512", "0.3588989", "1.1231056", "2.7958315"),
    ("0.4142135", "2.4494897", "1.1622776", "3.1231056", "0.7416573", "1.8729833", "2.3851648", "0.5677643", "1.4403124"),
    ("2.8284271", "1.2915026", "0.5567764", "0.8989794", "3.3166247", "2.6457513", "1.5830052", "0.9442719", "1.9160797"),
)
_INTEGERS = ((9, 4, 2, 7, 3, 5), (12, 5, 3, 2, 8, 4), (7, 2, 5, 3, 4, 6), (10, 7, 6, 4, 2, 3), (11, 3, 1, 6, 5, 2), (8, 6, 4, 5, 3, 7), (6, 3, 2, 9, 7, 4), (5, 1, 3, 4, 2, 8))


class Unreadable(ValueError):
    """The text is no expression, or too large."""


def equal_expressions(one: str, other: str) -> bool:
    """Whether two normalized expressions are equal at every point.

    Raises:
        Unreadable: one of them cannot be parsed or evaluated.
    """
    return _agree(_read(one), _read(other), one + other)


def equal_equations(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether left - right of two equations have the same ratio, other than 0, at every point.

    Raises:
        Unreadable: a side cannot be parsed or evaluated.
    """
    first, second = ([_read(side) for side in sides] for sides in (one, other))
    letters = _letters(*first, *second)
    ratios = []
    for point in _points(letters, "".join(one + other)):
        try:
            with _precision(_DIGITS):
                a, b = (_value(left, point) - _value(right, point) for left, right in (first, second))
                ratios.append(a / b)
        except ArithmeticError:
            continue
    return len(ratios) > 1 and all(_close(ratio, ratios[0]) and abs(ratio) > 1e-20 for ratio in ratios)


def within_rounding(expression: str, decimal: Fraction, error: Fraction) -> bool:
    """Whether the value of a normalized expression without letters is within `error` of `decimal`.

    Raises:
        Unreadable: it cannot be parsed or evaluated, or has letters.
    """
    read = _read(expression)
    if _letters(read):
        raise Unreadable(expression)
    with _precision(_DIGITS):
        value = _value(read, {})
        return bool(abs(value - _mpf(decimal)) <= _mpf(error))


def _agree(one: Any, other: Any, text: str) -> bool:
    letters = _letters(one, other)
    compared = 0
    for point in _points(letters, text):
        try:
            with _precision(_DIGITS):
                a, b = _value(one, point), _value(other, point)
            if not (_finite(a) and _finite(b)):
                continue
            if not _close(a, b):
                with _precision(_MORE_DIGITS):
                    exact_a, exact_b = _value(one, point), _value(other, point)
                    # A value that shrinks with the precision is 0.
                    if not (_vanishes(a, exact_a) and _vanishes(b, exact_b)):
                        return False
        except ArithmeticError:
            continue
        compared += 1
    if not compared:
        raise Unreadable(text)
    return True


def _close(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= max(abs(a), abs(b)) * _mpf(Fraction(1, 10**_AGREEING)))


def _finite(value: Any) -> bool:
    import mpmath

    return bool(mpmath.isfinite(value))


def _vanishes(value: Any, precise: Any) -> bool:
    return bool(precise == 0 or abs(precise) < abs(value) * _mpf(Fraction(1, 10**_AGREEING)))


def _points(letters: list[str], text: str) -> list[dict[str, Any]]:
    if not letters:
        return [{}]
    import mpmath

    whole = re.search(r"!|\\binom|\\lfloor|\\lceil|\\lbrack|\(-1\) ?\^", text)
    rows: list[tuple[Any, ...]] = list(_INTEGERS if whole else _GENERIC)
    if "|" in text:
        rows += [tuple(f"-{x}" if (k + n) % 2 else x for k, x in enumerate(row)) for n, row in enumerate(_GENERIC)]
    with _precision(_MORE_DIGITS):
        return [{name: mpmath.mpf(row[k % len(row)]) + k // len(row) for k, name in enumerate(letters)} for row in rows]


def _letters(*expressions: Any) -> list[str]:
    names = {str(s) for e in expressions for s in e.free_symbols}
    return sorted(names - {"i"})


def _read(text: str) -> Any:
    """The unevaluated sympy expression of a normalized text."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    if re.search(rf"\d{{{LONGEST_NUMBER}}}|\d \d|[%=<>:\"&#@\x1e]|\\(?:text|ldots|approx|begin)", text) or _depth(text) > _DEEPEST:
        raise Unreadable(text)
    for pattern, replacement in _EXPLICIT:
        text = pattern.sub(replacement, text)
    try:
        config = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
        read = latex2sympy(text, normalization_config=None, conversion_config=config)
        read.free_symbols  # noqa: B018: not every result is an expression
    except Exception as error:  # the parser raises plain exceptions
        raise Unreadable(text) from error
    return read


def _fraction(decimal: str) -> str:
    value = Fraction(decimal)
    return rf"{{\frac{{{value.numerator}}}{{{value.denominator}}}}}"


_EXPLICIT: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        # What the parser does not know, or takes for something else
        (r"(?<=[\d}]) ?\\degree|\\degree", r"\\cdot \\frac{\\pi}{180} "),
        (r"(?<![\d}])(\d+) ?\\frac\{(\d+)\}\{(\d+)\}", lambda m: (rf"({m[0].replace(m[1], m[1] + '+', 1)})" if int(m[2]) < int(m[3]) else rf"{m[1]}\cdot \frac{{{m[2]}}}{{{m[3]}}}")),
        (r"\d+\.\d+", lambda m: _fraction(m[0])),
        (r"_\{([^{}]*)\}", lambda m: f"_{{{re.sub('[^A-Za-z0-9]', '', m[1])}}}"),
        (r"([A-Za-z](?:_\{\w*\})?)('+)", lambda m: f"{m[1].partition('_')[0]}_{{{re.sub('[^0-9A-Za-z]', '', m[1][1:])}p{len(m[2])}}}"),
        (r"(?<![\\A-Za-z])E(?![a-z])", r"\\Xi "),
        (r"(\\sqrt\[[^\[\]]*\])|(\[|\\\{)|\]|\\\}", lambda m: m[1] or ("(" if m[2] else ")")),
        (r"(\w+|\([^()]*\)) ?!(?= ?\^)", r"(\1!)"),
        (r"(?<=[\d)]) ?\(", r"\\cdot ("),
        (r"(?<=\)) ?(?=[\dA-Za-z\\])(?!\\(?:cdot|rfloor|rceil|right|le|ge|times))", r"\\cdot "),
        (r"(\\[a-z]+ ?[_^] ?\{[^{}]*\} ?\d)|(?<=\}) ?(?=\d)", lambda m: m[1] or r"\cdot "),
    ]
]  # fmt: skip


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _precision(digits: int) -> Any:
    import mpmath

    return mpmath.workdps(digits)


def _mpf(value: Fraction) -> Any:
    import mpmath

    return mpmath.mpf(value.numerator) / value.denominator


def _value(node: Any, point: dict[str, Any]) -> Any:
    """The number that an unevaluated sympy expression is at a point.

    sympy's own evaluation would compute towers of integer powers exactly.

    Raises:
        Unreadable: a node has no value, or one that is too large.
        ArithmeticError: the point is outside the domain.
    """
    import mpmath

    name = type(node).__name__
    if node.is_Symbol:
        return mpmath.mpc(0, 1) if str(node) == "i" else point[str(node)]
    if node.is_Rational:
        return mpmath.mpf(int(node.p)) / int(node.q)
    if name in ("Pi", "Exp1", "ImaginaryUnit"):
        return {"Pi": +mpmath.pi, "Exp1": +mpmath.e, "ImaginaryUnit": mpmath.mpc(0, 1)}[name]
    if name in ("Derivative", "Integral", "Sum", "Product") or not node.args:
        raise Unreadable(str(type(node)))
    values = [_value(argument, point) for argument in node.args]
    if name == "Add":
        return mpmath.fsum(values)
    if name == "Mul":
        return mpmath.fprod(values)
    if name == "Pow":
        return _power(*values)
    if name == "exp":
        return _power(+mpmath.e, *values)
    if name == "log":
        return mpmath.log(*values)
    if name == "factorial":
        if abs(values[0]) > _LARGEST_FACTORIAL:
            raise Unreadable("factorial")
        return mpmath.factorial(values[0])
    if node.func.__module__ is None or "AppliedUndef" in {kind.__name__ for kind in type(node).__mro__}:
        # An unknown function: any fixed function that tells names and arguments apart.
        seed = zlib.crc32(str(node.func).encode()) % 997
        return mpmath.sin(seed + sum(value / (2 + k) for k, value in enumerate(values)))
    function = {"Abs": "fabs", "ceiling": "ceil", "UnevaluatedExpr": "mpmathify", "Max": "max", "Min": "min"}.get(name, name)
    if function in ("max", "min"):
        return max(values) if function == "max" else min(values)
    known = getattr(mpmath, function, None) if name.islower() or name in ("Abs", "UnevaluatedExpr") else None
    if known is None:
        raise Unreadable(name)
    return known(*values)


def _power(base: Any, exponent: Any) -> Any:
    import mpmath

    if base == 0 and mpmath.re(exponent) < 0:
        raise ZeroDivisionError
    if base and abs(exponent) * (abs(mpmath.log(base)) + 1) > _LARGEST_EXPONENT:
        raise Unreadable("power")
    return mpmath.power(base, exponent)
