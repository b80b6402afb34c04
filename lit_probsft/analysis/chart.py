"""The style of all charts, and charts as SVG elements for a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_probsft.analysis.page import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER = "#8d939c", "#05682f"
"""Colours of values before and after training."""
GAIN, LOSS = "#05682f", "#c2510c"
"""Colours of improvements and regressions."""
SERIES = ("#05682f", "#c2510c", "#2f5da8", "#8a3f8f", "#8c6d00", "#008080", "#8d939c")
"""Colours of curves, in order."""

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#333333",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 7,
    "text.color": "#333333",
    "text.parse_math": False,  # a user's names may contain dollar signs
    "xtick.color": "#999999",
    "xtick.labelcolor": "#333333",
    "ytick.color": "#999999",
    "ytick.labelcolor": "#333333",
}
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 44, 42
"""Margins around the axes of an SVG chart, in pixels."""


@contextmanager
def chart_style(changes: dict[str, Any]) -> Iterator[None]:
    """Draw in the package's style inside this context, whatever matplotlibrc says; then restore the caller's settings.

    Args:
        changes: matplotlib settings that differ from the style.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | changes)
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a browser falls back to another font
        yield


@dataclass
class Chart:
    """A chart under construction.

    Attributes:
        axes: where to draw.
        svg: the SVG element, once the chart is complete.
    """

    axes: Axes
    svg: str = ""


@contextmanager
def svg_chart(title: str, x: str, y: str, size: tuple[int, int] = (440, 270)) -> Iterator[Chart]:
    """Draw on the chart's `axes` in the `with` block, then read its `svg`.

    Text stays text, and equal charts have equal bytes.

    Args:
        title: shown above the chart; labels of what is drawn follow below it.
        x: label of the x axis.
        y: label of the y axis; without one the axis has no ticks.
        size: width and height in pixels.
    """
    # The title makes the ids of a page's charts differ.
    with chart_style({"font.size": 12, "svg.fonttype": "none", "svg.hashsalt": title}):
        from matplotlib.figure import Figure

        width, height = size
        figure = Figure(figsize=(width / 72, height / 72))  # an SVG of matplotlib has 72 pixels per inch
        inner = ((width - _LEFT - _RIGHT) / width, (height - _TOP - _BOTTOM) / height)
        axes = figure.add_axes((_LEFT / width, _BOTTOM / height, *inner))
        axes.set(xlabel=x, ylabel=y)
        axes.locator_params(nbins=6)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color="#e7e7e4", linewidth=1)
        if not y:
            axes.set_yticks([])
        chart = Chart(axes)
        yield chart
        figure.text(_LEFT / width, 1 - 14 / height, title, size=13, weight="bold")
        _add_legend(axes, width)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    chart.svg = _inline(file.getvalue(), title)


def _add_legend(axes: Axes, width: int) -> None:
    """A line of labels above the axes. Labels that do not fit are left out: the page's tables have every name."""
    handles, labels = axes.get_legend_handles_labels()
    ends, end = [], _LEFT
    for label in labels:
        end += int(6.5 * len(label)) + 26
        ends.append(end)
    fitting = sum(end <= width for end in ends)
    if fitting < len(labels):
        labels = [*labels[:fitting], "…"]
    if labels:
        axes.legend(
            handles[: len(labels)],
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1.02),
            ncols=len(labels),
            fontsize=11,
            handlelength=1,
            handletextpad=0.4,
            columnspacing=1.2,
            borderaxespad=0,
            borderpad=0,
        )


_SHORTER = {
    r' id="[\w.]+_\d+"': "",  # of groups; several charts on a page would share them
    r"(\d)pt\"": r'\1"',
    r"(\.\d\d)\d+": r"\1",
    r"font-family: [^;]*; ": "",  # the page sets it
    r' transform="rotate\(-0 [^)]*\)"': "",
}
"""Replacements in the tags of matplotlib's SVG."""


def _inline(document: str, title: str) -> str:
    """A small SVG element from an SVG document of matplotlib."""

    def shorter(tag: re.Match[str]) -> str:
        text = tag[0]
        for pattern, replacement in _SHORTER.items():
            text = re.sub(pattern, replacement, text)
        return text

    svg = " ".join(document[document.index("<svg") :].split()).replace("> <", "><")
    svg = re.sub("<[^>]*>", shorter, svg).replace("<g/>", "")
    return svg.replace(">", f' role="img"><title>{escape(title)}</title>', 1)
