r"""Parses an answer in the notation of latex.py into a value of one kind.

5   \frac{1}{2}   11 5/6   0.\overline{3}   1.5\cdot 10^{-3}      Number
2\sqrt{3}   x+1   even                                            Leaf: an expression or words
f(x)=2x                                                           Equation
(1,2)   [1,2]   \{1,2\}   1,2   1\pm\sqrt{2}   a matrix           Group
1<x   [0,1)   (0,1)\cup\{2\}                                      Group of intervals
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from lit_probsft.evaluation.grading.latex import ROW, closing


@dataclass(frozen=True)
class Number:
    """A rational number.

    Attributes:
        value: exactly what was written.
        text: how it was written.
        digits: significant digits of a decimal; 0 for integers and fractions.
        unit: the value of the last of these digits.
    """

    value: Fraction
    text: str
    digits: int = 0
    unit: Fraction = Fraction(0)


@dataclass(frozen=True)
class Leaf:
    """An expression or words."""

    text: str


@dataclass(frozen=True)
class Equation:
    """Two sides. Of a chain of equations only the first and the last side count."""

    left: str
    right: str


@dataclass(frozen=True)
class Group:
    r"""Several values.

    Attributes:
        kind: "()", "[]", "(]", "[)" or "{}" for the brackets around them; "" for values that only commas separate;
            "union" of intervals, which are pairs in brackets; "matrix" of rows in "()".
        items: the values.
    """

    kind: str
    items: tuple[Value, ...]


Value = Number | Leaf | Equation | Group

_INFINITE = (Leaf(r"\infty"), Leaf(r"-\infty"))
_DECIMAL = r"\d+(?:\.\d+)?"
_NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?(?:(?P<start>\d+\.\d*)\\overline ?\{(?P<repeated>\d+)\}"
    r"|(?P<whole>\d+)(?: ?\\frac\{(?P<mixed_top>\d+)\}\{(?P<mixed_bottom>\d+)\}| (?P<n>\d+)/(?P<d>\d+))"
    rf"|(?:\\frac\{{ ?(?P<top>-?{_DECIMAL}) ?\}}\{{ ?(?P<bottom>-?{_DECIMAL}) ?\}}"
    rf"|(?P<decimal>{_DECIMAL})(?: ?/ ?(?P<over>-?{_DECIMAL}))?)"
    r"(?: ?\\cdot ?10\^\{ ?(?P<power>-?\d{1,3}) ?\})?|10\^\{ ?(?P<ten>-?\d{1,3}) ?\})"
)
_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_LIST = re.compile(r"[,;]|(?<=[\s,])(?:and|or)(?=\s)")
_CONJUNCTION = re.compile(r"\band\b|;")
_UNION = re.compile(r"\\cup(?![a-z])")
_MEMBER = re.compile(r"\\in(?![a-z])")
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![a-z])|[<>=]")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}")
_SETBUILDER = re.compile(r"\\\{ ?[a-zA-Z] ?(?:\\in ?\\R ?)?(?:\\mid|[|:]) ?(.*)\\\}")
_EMPTY = re.compile(r"\\emptyset|\\\{ ?\\\}|(?:\\text\{)?no (?:real )?solutions?\}?", re.IGNORECASE)
_REALS = re.compile(r"\\R|(?:\\text\{)?all real numbers\}?", re.IGNORECASE)
NO_UNIT = r"(?!(?:is|are|not|if|for|when|where|and|or|to|plus|minus|times|more|less|squared|cubed|factorial)\b)"
"""Other words after a number."""
_TEXT_UNIT = re.compile(
    r"(?P<value>.*[^\s=<>+(\[{,:_^-])"
    r" ?(?:(?:\\text\{" + NO_UNIT + r"[^{}]*\}"
    r"(?: ?\^ ?\{-?\d\})?|\\AA|\\mu(?= ?\\text))(?: |/|\\cdot)*)+"
)
_SIZES = {
    name: (kind, int(size))
    for kind, units in {
        "length": "1 mm millimeter 10 cm centimeter 1000 m meter 1000000 km kilometer",
        "feet": "1 in inch inches 12 ft foot feet 36 yd yard 63360 mi mile",
        "mass": "1 mg milligram 1000 g gram 1000000 kg kilogram",
        "time": "1 s sec second 60 min minute 3600 h hr hour 86400 day 604800 week",
        "money": "1 cent 100 dollar",
        "clock": "1 am a.m 2 pm p.m",
    }.items()
    for size, names in re.findall(r"(\d+) ([^\d]+)", units)
    for name in names.split()
}
_SIZED = re.compile(rf"(.*[^ ]) ?(?:\\text\{{|(?<=[\d }}]))({'|'.join(map(re.escape, _SIZES))})(?:s|\.)?\}}?")
_OPERATION = re.compile(r"[\d+*/^|-]|\\(?:frac|sqrt|cdot|begin|sin|cos|tan|log|ln|exp|binom|pm|sum|int)(?![a-z])")


def number(text: str) -> Number | None:
    """The rational number that a text is, or None. Mixed numbers need a proper fraction."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    part = match.groupdict()
    digits, unit = 0, Fraction(0)
    try:
        if part["repeated"]:
            start, loop = part["start"], part["repeated"]
            repeated = Fraction(int(loop), 10 ** len(loop) - 1) / 10 ** len(start.partition(".")[2])
            value = Fraction(start + "0") + repeated
        elif part["whole"]:
            fraction = Fraction(int(part["mixed_top"] or part["n"]), int(part["mixed_bottom"] or part["d"]))
            if not 0 < fraction < 1:
                return None
            value = int(part["whole"]) + fraction
        else:
            scale = Fraction(10) ** int(part["power"] or part["ten"] or 0)
            value = (
                Fraction(part["top"] or part["decimal"] or 1) / Fraction(part["bottom"] or part["over"] or 1) * scale
            )
            if part["decimal"] and not part["over"] and ("." in text or part["power"]):
                digits = len(part["decimal"].replace(".", "").lstrip("0"))
                unit = scale / 10 ** len(part["decimal"].partition(".")[2])
    except (ZeroDivisionError, ValueError):  # also more digits than Python converts
        return None
    return Number(-value if part["sign"] == "-" else value, text, digits, unit)


def measure(text: str) -> tuple[str, int, Number | None] | None:
    """The kind and the size of a well-known unit at the end, and the number before it in the kind's smallest unit."""
    found = _SIZED.fullmatch(text)
    if found is None:
        return None
    (kind, size), count = _SIZES[found[2]], number(found[1])
    return kind, size, count and replace(count, value=count.value * size, unit=count.unit * size)


def parse(text: str, thousands: bool = False) -> Value:
    """The value of a normalized text.

    Args:
        text: in the notation of `normalize`.
        thousands: read `10,000` outside brackets as one number rather than two.
    """
    text = text.strip(" ,;")
    if unit := _TEXT_UNIT.fullmatch(text):
        text = unit["value"].strip()
    if _EMPTY.fullmatch(text):
        return Group("union", ())
    if _REALS.fullmatch(text):
        return Group("union", (Group("()", _INFINITE[::-1]),))
    if builder := _SETBUILDER.fullmatch(text):
        return parse(builder[1], thousands)
    if thousands:
        for match in reversed(list(_THOUSANDS.finditer(_outside_brackets(text)))):
            text = text[: match.start()] + match[0].replace(",", "") + text[match.end() :]
    items = [parse(part) if part != text else _single(text) for part in _split(text, _LIST) if part.strip()]
    if len(items) < 2:
        return items[0] if items else Leaf("")
    regions = all(isinstance(item, Group) and item.kind == "union" for item in items)
    if regions and not _CONJUNCTION.search(_outside_brackets(text)):
        return Group("union", _items(items))
    return Group("", tuple(x for item in items for x in _listed(item)))


def _single(text: str) -> Value:
    """The value of a text without commas outside brackets."""
    if found := number(text):
        return found
    if len(unions := _split(text, _UNION)) > 1:
        sets = [group for part in unions if (group := as_union(parse(part)))]
        return Group("union", _items(sets)) if len(sets) == len(unions) else Leaf(text)
    if len(member := _split(text, _MEMBER)) == 2:
        return as_union(parse(member[1])) or parse(member[1])
    if _RELATION.search(_outside_brackets(text)):
        return _relation(text)
    if matrix := _MATRIX.fullmatch(text):
        rows = [row.split("&") for row in matrix[1].split(ROW) if row.strip()]
        return Group("matrix", tuple(Group("()", tuple(parse(cell) for cell in row)) for row in rows))
    opening = re.match(r"\\\{|[(\[]", text)
    if opening and closing(text, opening.end() - 1) == len(text) - 1:
        inner = parse(text[opening.end() : -1].removesuffix("\\"))
        items = _listed(inner)
        inside = Group(text[opening.end() - 1] + text[-1], items)
        if len(items) == 1 and inside.kind != "{}":
            return inner
        interval = inside.kind in ("(]", "[)") or any(item in _INFINITE for item in items)
        return (as_union(inside) or Leaf(text)) if interval else inside
    if re.search(r"\\(?:pm|mp)(?![a-z])", text):
        signs = ("+", "-"), ("-", "+")
        return Group("", tuple(parse(text.replace(r"\pm", a).replace(r"\mp", b)) for a, b in signs))
    return Leaf(re.sub(r"^\+ ?", "", text.replace(r"- \infty", r"-\infty")))


def _listed(value: Value) -> tuple[Value, ...]:
    """The values that only commas separate."""
    return value.items if isinstance(value, Group) and not value.kind else (value,)


def _items(groups: Sequence[Value]) -> tuple[Value, ...]:
    return tuple(item for group in groups if isinstance(group, Group) for item in group.items)


def _relation(text: str) -> Value:
    """An equation, or the interval that an inequality of one letter describes."""
    signs = [match[0] for match in _RELATION.finditer(_outside_brackets(text))]
    sides = [side.strip() for side in _split(text, _RELATION)]
    if all(sign == "=" for sign in signs):
        return Equation(sides[0], sides[-1])
    if "=" in signs or len(signs) > 2:
        return Leaf(text)
    if signs[-1] in (">", r"\ge") if len(signs) == 2 else not _is_letter(sides[0]):
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    closed = [sign in (r"\le", r"\ge") for sign in signs]
    if len(signs) == 2:
        kind = "(["[closed[0]] + ")]"[closed[1]]
        ordered = _is_letter(sides[1]) and all(sign in ("<", r"\le") for sign in signs)
        return Group("union", (Group(kind, (parse(sides[0]), parse(sides[2]))),)) if ordered else Leaf(text)
    end = parse(sides[1])
    below, above = Group("(" + ")]"[closed[0]], (_INFINITE[1], end)), Group("(["[closed[0]] + ")", (end, _INFINITE[0]))
    intervals = {r"\ne": (below, above), "<": (below,), r"\le": (below,)}.get(signs[0], (above,))
    return Group("union", intervals) if _is_letter(sides[0]) else Leaf(text)


def as_union(value: Value) -> Group | None:
    """A pair as an interval, a set as its points; None if the value is no set of real numbers."""
    if not isinstance(value, Group) or value.kind == "union":
        return value if isinstance(value, Group) else None
    if value.kind == "{}":
        return Group("union", tuple(Group("[]", (item, item)) for item in value.items))
    return Group("union", (value,)) if value.kind and value.kind != "matrix" and len(value.items) == 2 else None


def is_name(text: str) -> bool:
    r"""Whether a side of an equation only names what the other side says: x, f(x), a_{1}, \angle ABC, \text{Area}."""
    bare = re.sub(r"_\{[^{}]*\}|\\text\{[^{}]*\}", "", text)
    if _OPERATION.search(bare):
        return False
    bare = re.sub(r"\\[a-zA-Z]+|[\s'{}]", "", bare)
    return re.fullmatch(r"[A-Za-z]?(?:\([A-Za-z](?:,[A-Za-z])*\))?|[A-Z]+|[A-Za-z]{3,}", bare) is not None


def _is_letter(text: str) -> bool:
    return is_name(text) and text not in (r"\pi", r"\infty", "e")


def _outside_brackets(text: str) -> str:
    """The text with a NUL for each character within brackets."""
    kept, position = [], 0
    for opening in re.finditer(r"[(\[{]", text):
        if opening.start() >= position:
            end = min(closing(text, opening.start()) + 1, len(text))
            kept += [text[position : opening.start()], "\0" * (end - opening.start())]
            position = end
    return "".join(kept) + text[position:]


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at the separators outside brackets."""
    cuts = [match.span() for match in separator.finditer(_outside_brackets(text))]
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]
