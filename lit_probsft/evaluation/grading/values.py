r"""Parses an answer in the notation of latex.py into a value of one kind.

    5, \frac{1}{2}, 11 5/6, 5%      Number
    2\sqrt{3}, x+1, even            Leaf: an expression or words
    (1,2)  [1,2]  \{1,2\}  1,2      Group
    f(x)=2x                         Equation
    1<x, [0,1), (0,1)\cup\{2\}      Region: a set of real numbers
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lit_probsft.evaluation.grading.latex import ROW, closing


@dataclass(frozen=True)
class Number:
    """A rational number.

    Attributes:
        value: exactly what was written.
        text: how it was written.
        digits: significant digits of a decimal; None for integers and fractions.
        places: digits after the decimal point, less the power of ten.
    """

    value: Fraction
    text: str
    digits: int | None = None
    places: int = 0


@dataclass(frozen=True)
class Leaf:
    """An expression or words."""

    text: str


@dataclass(frozen=True)
class Group:
    r"""Several values. `brackets` is "()", "[]", "{}" or, for values that only a comma separates, ""."""

    brackets: str
    items: tuple[Value, ...]


@dataclass(frozen=True)
class Matrix:
    """The rows of a matrix."""

    rows: tuple[Group, ...]


@dataclass(frozen=True)
class Equation:
    """Two sides. Of a chain of equations only the first and the last side count."""

    left: str
    right: str
    text: str


@dataclass(frozen=True)
class Piece:
    """An interval of real numbers. One with equal closed ends is a point."""

    low: Value
    high: Value
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True)
class Region:
    """A union of intervals."""

    pieces: tuple[Piece, ...]


Value = Number | Leaf | Group | Matrix | Equation | Region

_INFINITY = Leaf(r"\infty")
_MINUS_INFINITY = Leaf(r"-\infty")
_DECIMAL = r"(?:\d+(?:\.\d+)?)"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?(?:(?P<start>\d+\.\d*)\\overline ?\{(?P<repeated>\d+)\}"
    r"|(?P<whole>\d+) ?(?:\\frac\{(?P<mn>\d+)\}\{(?P<md>\d+)\}| (?P<n>\d+)/(?P<d>\d+))"
    rf"|(?:\\frac\{{ ?(?P<top>-?{_DECIMAL}) ?\}}\{{ ?(?P<bottom>-?{_DECIMAL}) ?\}}|(?P<decimal>{_DECIMAL})(?: ?/ ?(?P<over>-?{_DECIMAL}))?)"
    r"(?: ?\\cdot ?10\^\{ ?(?P<power>-?\d{1,4}) ?\})?|10\^\{ ?(?P<ten>-?\d{1,4}) ?\})"
)
_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?![\d]|,\d)")
_LIST = re.compile(r"[,;]|(?<=[\s,])(?:and|or)(?=\s)")
_CONJUNCTION = re.compile(r"\band\b|;")
_UNION = re.compile(r"\\cup(?![a-z])")
_MEMBER = re.compile(r"\\in(?![a-z])")
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![a-z])|[<>=]")
_CLOSED = (r"\le", r"\ge")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}")
_SETBUILDER = re.compile(r"\\\{ ?[a-zA-Z] ?(?:\\in ?\\R ?)?(?:\\mid|[|:]) ?(.*)\\\}")
_EMPTY = re.compile(r"\\emptyset|\\\{ ?\\\}|(?:\\text\{)?no (?:real )?solutions?\}?", re.IGNORECASE)
_REALS = re.compile(r"\\R|(?:\\text\{)?all real numbers\}?", re.IGNORECASE)
_TEXT_UNIT = re.compile(
    r"(?P<value>.*[^\s=<>+(\[{,:_^-]) ?(?:(?:\\text\{[^{}]*\}(?: ?\^ ?\{-?\d\})?|\\AA|\\mu(?= ?\\text)|\\Omega)(?: |/|\\cdot)*)+"
)
_OPERATION = re.compile(r"[\d+*/^|-]|\\(?:frac|sqrt|cdot|begin|sin|cos|tan|log|ln|exp|binom|pm|sum|int)(?![a-z])")


def number(text: str) -> Number | None:
    """The rational number that a text is, or None. Mixed numbers need a proper fraction."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    part = match.groupdict()
    digits, places = None, 0
    try:
        if part["repeated"]:
            start, loop = part["start"], part["repeated"]
            value = Fraction(int(start.replace(".", "") + loop) - int(start.replace(".", "")), 10 ** len(start.partition(".")[2]) * (10 ** len(loop) - 1))
        elif part["whole"]:
            fraction = Fraction(int(part["mn"] or part["n"]), int(part["md"] or part["d"]))
            if not 0 < fraction < 1:
                return None
            value = int(part["whole"]) + fraction
        else:
            power = int(part["power"] or part["ten"] or 0)
            value = Fraction(part["top"] or part["decimal"] or 1) / Fraction(part["bottom"] or part["over"] or 1)
            value *= Fraction(10) ** power
            if part["decimal"] and not part["over"] and ("." in part["decimal"] or power):
                digits = len(part["decimal"].replace(".", "").lstrip("0"))
                places = len(part["decimal"].partition(".")[2]) - power
    except (ZeroDivisionError, ValueError):  # also more digits than Python converts
        return None
    return Number(-value if part["sign"] == "-" else value, text, digits, places)


def parse(text: str, thousands: bool = True) -> Value:
    r"""The value of a normalized text.

    Args:
        text: in the notation of `normalize`.
        thousands: read `10,000` outside brackets as one number rather than two.
    """
    text = text.strip().strip(",;").strip()
    if unit := _TEXT_UNIT.fullmatch(text):
        text = unit["value"].strip()
    if _EMPTY.fullmatch(text):
        return Region(())
    if _REALS.fullmatch(text):
        return Region((Piece(_MINUS_INFINITY, _INFINITY, False, False),))
    if builder := _SETBUILDER.fullmatch(text):
        return parse(builder[1], thousands)
    if thousands:
        for match in reversed(list(_THOUSANDS.finditer(_outside_brackets(text)))):
            text = text[: match.start()] + match[0].replace(",", "") + text[match.end() :]
    parts = [part for part in _split(text, _LIST) if part.strip()]
    if len(parts) < 2:
        return _single(parts[0].strip() if parts else "")
    items = [parse(part, False) for part in parts]
    if all(isinstance(item, Region) for item in items) and not _CONJUNCTION.search(_outside_brackets(text)):
        return _union(items)
    return Group("", tuple(_flattened(items)))


def _single(text: str) -> Value:
    """The value of a text without commas outside brackets."""
    if found := number(text):
        return found
    if len(unions := _split(text, _UNION)) > 1:
        regions = [as_region(parse(part)) for part in unions]
        return _union(regions) if all(regions) else Leaf(text)
    if len(member := _split(text, _MEMBER)) == 2:
        inner = parse(member[1], False)
        return as_region(inner) or inner
    if _RELATION.search(_outside_brackets(text)):
        return _relation(text)
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in matrix[1].split(ROW) if row.strip()]
        return Matrix(tuple(Group("()", tuple(parse(cell, False) for cell in row.split("&"))) for row in rows))
    opening = re.match(r"\\\{|[(\[]|\\langle", text)
    if opening and closing(text, opening.end() - 1) == len(text) - 1:
        return _bracketed(text, text[opening.end() : -1].removesuffix("\\"), text[opening.end() - 1] + text[-1])
    if re.search(r"\\(?:pm|mp)(?![a-z])", text):
        upper = text.replace(r"\pm", "+").replace(r"\mp", "-")
        lower = text.replace(r"\pm", "-").replace(r"\mp", "+")
        return Group("", (parse(upper, False), parse(lower, False)))
    return Leaf(re.sub(r"^\+ ?", "", text.replace(r"- \infty", r"-\infty")))


def _bracketed(text: str, inside: str, brackets: str) -> Value:
    inner = parse(inside, False)
    items = inner.items if isinstance(inner, Group) and not inner.brackets else (inner,)
    if len(items) == 1 and brackets != "{}":
        return inner
    group = Group(brackets, items)
    if brackets in ("(]", "[)") or _INFINITY in items or _MINUS_INFINITY in items:
        return as_region(group) or Leaf(text)
    return group


def _relation(text: str) -> Value:
    parts = [part.strip() for part in _split(text, _RELATION, keep=True)]
    sides, signs = parts[::2], parts[1::2]
    if all(sign == "=" for sign in signs):
        return Equation(sides[0], sides[-1], text)
    if len(sides) == 2 and _is_letter(sides[1]):
        sides, signs = sides[::-1], [_FLIPPED.get(signs[0], signs[0])]
    if len(sides) == 2 and _is_letter(sides[0]):
        end, closed = parse(sides[1], False), signs[0] in _CLOSED
        below, above = Piece(_MINUS_INFINITY, end, False, closed), Piece(end, _INFINITY, closed, False)
        return Region({r"\ne": (below, above), "<": (below,), r"\le": (below,)}.get(signs[0], (above,)))
    if len(sides) == 3 and _is_letter(sides[1]):
        if all(sign in _FLIPPED and sign in (">", r"\ge") for sign in signs):
            sides, signs = sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
        if all(sign in ("<", r"\le") for sign in signs):
            low, high = parse(sides[0], False), parse(sides[2], False)
            return Region((Piece(low, high, signs[0] in _CLOSED, signs[1] in _CLOSED),))
    return Leaf(text)


def _union(regions: Sequence[Value | None]) -> Region:
    return Region(tuple(piece for region in regions if isinstance(region, Region) for piece in region.pieces))


def _flattened(items: Sequence[Value]) -> Iterator[Value]:
    for item in items:
        yield from item.items if isinstance(item, Group) and not item.brackets else (item,)


def as_region(value: Value) -> Region | None:
    """A pair as an interval, a set as its points; None if the value is no set of real numbers."""
    if isinstance(value, Region):
        return value
    if isinstance(value, Group) and value.brackets == "{}":
        return Region(tuple(Piece(item, item, True, True) for item in value.items))
    if isinstance(value, Group) and value.brackets and len(value.items) == 2:
        low, high = value.items
        return Region((Piece(low, high, value.brackets[0] == "[", value.brackets[1] == "]"),))
    return None


def is_name(text: str) -> bool:
    r"""Whether a side of an equation only names what the other side says: x, f(x), a_{1}, \angle ABC, \text{Area}."""
    bare = re.sub(r"_\{[^{}]*\}|\\text\{[^{}]*\}", "", text)
    if _OPERATION.search(bare):
        return False
    bare = re.sub(r"\\[a-zA-Z]+|[\s'{}]", "", bare)
    return re.fullmatch(r"[A-Za-z]?|[A-Za-z]\([A-Za-z](?:,[A-Za-z])*\)|[A-Z]+|[A-Za-z]{3,}", bare) is not None


def _is_letter(text: str) -> bool:
    return is_name(text) and text not in (r"\pi", r"\infty", r"-\infty", "e")


def _outside_brackets(text: str) -> str:
    """The text with a NUL for each character within brackets."""
    kept, position = [], 0
    for opening in re.finditer(r"[(\[{]", text):
        if opening.start() >= position:
            end = closing(text, opening.start())
            kept += [text[position : opening.start()], "\0" * (end + 1 - opening.start())]
            position = end + 1
    return "".join(kept)[: len(text)] + text[position:]


def _split(text: str, separator: re.Pattern[str], keep: bool = False) -> list[str]:
    """Split at the separators outside brackets; with `keep`, the separators stay in the list."""
    parts, position = [], 0
    for match in separator.finditer(_outside_brackets(text)):
        parts.append(text[position : match.start()])
        if keep:
            parts.append(match[0])
        position = match.end()
    return [*parts, text[position:]]
