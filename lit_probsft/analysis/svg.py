"""Pictures as SVG inside a page: axes, lines, bars, bands, points; no script, no file, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_probsft.analysis.page import escape

BEFORE, AFTER = "#8d939c", "#05682f"
"""Colours of what was there before training and after it."""
GAIN, LOSS = "#05682f", "#c2510c"
"""Colours of what became better and worse."""
COLOURS = ("#05682f", "#c2510c", "#2f5da8", "#8a3f8f", "#8c6d00", "#008080", "#8d939c")
"""Of curves, one after the other."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 44, 42


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` + 1 of them."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


class Plot:
    """A picture with two axes, drawn in the order of the calls.

    Args:
        title: what it shows, in a few words above it.
        x: name of the axis.
        y: the same.
        x_range: what the axis spans; widened where it is a single point.
        y_range: the same. A y axis without a name may run downwards.
        size: width and height in pixels.
        x_ticks: places and labels on the axis; by default round numbers.
        y_ticks: the same.
    """

    def __init__(
        self,
        title: str,
        x: str,
        y: str,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        size: tuple[int, int] = (440, 270),
        x_ticks: Sequence[tuple[float, str]] | None = None,
        y_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        self.title, self.size = title, size
        self._x, self._y = _wide(x_range), _wide(y_range)
        self._names = x, y
        found = ticks(*self._y, most=5) if y else []
        self._x_ticks = x_ticks or [(value, _short(value)) for value in ticks(*self._x)]
        self._own_y = y_ticks is not None
        self._y_ticks = y_ticks or [(value, _short(value)) for value in found]
        self._drawn: list[str] = []
        self._legend: list[tuple[str, str]] = []

    def line(
        self, xs: Sequence[float], ys: Sequence[float], colour: str, label: str = "", *, dashed: bool = False
    ) -> None:
        """A line through points; broken where a value is not finite."""
        commands, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                commands.append(f"{pen}{self._across(x):.1f} {self._up(y):.1f}")
                pen = "L"
            else:
                pen = "M"
        if len(commands) == 1:
            self.points(xs, ys, colour)
        elif commands:
            dashes = ' stroke-dasharray="5 4"' if dashed else ""
            self._drawn.append(
                f'<path d="{"".join(commands)}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
            )
        self._name(colour, label)

    def points(self, xs: Sequence[float], ys: Sequence[float], colour: str, label: str = "") -> None:
        """A dot for each point."""
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                place = f'cx="{self._across(x):.1f}" cy="{self._up(y):.1f}"'
                self._drawn.append(f'<circle {place} r="3.5" fill="{colour}"/>')
        self._name(colour, label)

    def bars(
        self,
        edges: Sequence[tuple[float, float]],
        heights: Sequence[float],
        colour: str | Sequence[str],
        label: str = "",
    ) -> None:
        """Bars from y = 0, each from the first to the second of its edges."""
        colours = [colour] * len(edges) if isinstance(colour, str) else colour
        for (low, high), height, fill in zip(edges, heights, colours, strict=True):
            if math.isfinite(height) and height:
                left, right, top, foot = self._across(low), self._across(high), self._up(height), self._up(0)
                place = f'x="{left:.1f}" y="{min(top, foot):.1f}" width="{max(right - left - 1, 0.5):.1f}"'
                self._drawn.append(f'<rect {place} height="{abs(foot - top):.1f}" fill="{fill}"/>')
        self._name(colours[0] if isinstance(colour, str) else "", label)

    def row(self, place: int, width: float, colour: str) -> None:
        """A bar from x = 0 across, in the row of that number, where rows are counted downwards."""
        ends = sorted((self._across(0), self._across(width)))
        top, foot = self._up(place + 0.15), self._up(place + 0.85)
        size = f'x="{ends[0]:.1f}" y="{top:.1f}" width="{ends[1] - ends[0]:.1f}" height="{foot - top:.1f}"'
        self._drawn.append(f'<rect {size} fill="{colour}"/>')

    def spans(self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], colour: str) -> None:
        """A thin upright line at each x."""
        for x, low, high in zip(xs, lows, highs, strict=True):
            if all(map(math.isfinite, (x, low, high))):
                at, ends = self._across(x), (self._up(low), self._up(high))
                self._drawn.append(
                    f'<path d="M{at:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{colour}" stroke-width="1.5"/>'
                )

    def shade(self, low: float, high: float, colour: str, label: str = "") -> None:
        """All heights from one x to another, named at the top."""
        left, right = self._across(low), self._across(high)
        place = f'x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{self.size[1] - _TOP - _BOTTOM}"'
        self._drawn.append(f'<rect {place} fill="{colour}"/>')
        middle = (left + right) / 2
        self._drawn.append(_text(middle, _TOP + 13, label, "middle", size=11) if label else "")

    def text(self, x: float, y: float, label: str, anchor: str = "start") -> None:
        """A word at a point."""
        self._drawn.append(_text(self._across(x), self._up(y) + 4, label, anchor, size=11))

    def render(self) -> str:
        """The picture."""
        width, height = self.size
        below, right = height - _BOTTOM, width - _RIGHT
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="system-ui, DejaVu Sans, sans-serif">'
            f"<title>{escape(self.title)}</title>",
            _text(_LEFT, 14, self.title, "start", size=13, weight=600),
        ]
        for value, label in self._x_ticks:
            at = self._across(value)
            parts.append(f'<path d="M{at:.1f} {below}v4" stroke="#999"/>' + _text(at, below + 17, label, "middle"))
        for value, label in self._y_ticks:
            at = self._up(value)
            parts.append(
                f'<path d="M{_LEFT} {at:.1f}H{right}" stroke="#e7e7e4"/>' + _text(_LEFT - 6, at + 4, label, "end")
            )
        parts += self._drawn
        parts.append(f'<path d="M{_LEFT} {_TOP}V{below}H{right}" fill="none" stroke="#999"/>')
        if self._y[0] < 0 < self._y[1] and not self._own_y:
            parts.append(f'<path d="M{_LEFT} {self._up(0):.1f}H{right}" stroke="#999"/>')
        parts.append(_text((_LEFT + right) / 2, height - 8, self._names[0], "middle"))
        turned = f'transform="rotate(-90 13 {(_TOP + below) / 2})"'
        parts.append(_text(13, (_TOP + below) / 2, self._names[1], "middle", more=turned) if self._names[1] else "")
        at = float(_LEFT)
        for colour, label in self._legend:
            if at + 6.5 * len(label) > width:  # many sets: the rest are in the table of the page
                parts.append(_text(at, 32, "…", "start", size=11))
                break
            parts.append(f'<circle cx="{at + 4:.1f}" cy="28" r="4" fill="{colour}"/>')
            parts.append(_text(at + 12, 32, label, "start", size=11))
            at += 6.5 * len(label) + 26
        return "".join(parts) + "</svg>"

    def _across(self, x: float) -> float:
        low, high = self._x
        return _LEFT + (min(max(x, low), high) - low) / (high - low) * (self.size[0] - _LEFT - _RIGHT)

    def _up(self, y: float) -> float:
        low, high = self._y
        return (
            self.size[1]
            - _BOTTOM
            - (min(max(y, min(low, high)), max(low, high)) - low) / (high - low) * (self.size[1] - _TOP - _BOTTOM)
        )

    def _name(self, colour: str, label: str) -> None:
        if label:
            self._legend.append((colour, label))


def extent(*series: Sequence[float], start: float | None = None) -> tuple[float, float]:
    """From the least to the largest finite value, with some room; from `start` on where it is given."""
    values = [value for values in series for value in values if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    if start is not None:
        low, high = min(low, start), max(high, start)
    room = 0.05 * (high - low)
    return low if low == start else low - room, high if high == start else high + room


def _wide(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if high != low else (low - (abs(low) or 1) / 2, low + (abs(low) or 1) / 2)


def _short(value: float) -> str:
    return f"{value:.10g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2g}"


def _text(x: float, y: float, text: str, anchor: str, *, size: int = 12, weight: int = 400, more: str = "") -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="#333" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style} {more}>{escape(text)}</text>'
