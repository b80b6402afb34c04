"""The style of all charts, and charts as SVG elements for a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.sans-serif": ["DejaVu Sans"],
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lit_probsft",
    "text.parse_math": False,  # a user's names may contain dollar signs
}
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 44, 42
"""Margins around the axes of an SVG chart, in pixels."""


@contextmanager
def chart_style(font_size: float = 12) -> Iterator[None]:
    """Within this context matplotlib draws in the package's style; afterwards the caller's settings are back."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"font.size": font_size})
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a browser falls back to another font
        yield


def new_chart(title: str, x: str, y: str, size: tuple[int, int] = (440, 270)) -> Axes:
    """Axes to draw on and to pass to `to_svg`, all within `chart_style`.

    Args:
        title: shown above the chart, with the labels of what is drawn below it.
        x: label of the x axis.
        y: label of the y axis; without one the axis has no ticks.
        size: width and height in pixels.
    """
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=(width / 72, height / 72))  # matplotlib's SVG has 72 units per inch
    right, top = 1 - _RIGHT / width, 1 - _TOP / height
    figure.subplots_adjust(left=_LEFT / width, bottom=_BOTTOM / height, right=right, top=top)
    axes = figure.subplots()
    axes.set_title(title, loc="left", pad=26, size=13, weight="bold")
    axes.set(xlabel=x, ylabel=y)
    axes.locator_params(nbins=6)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", color="#e7e7e4")
    axes.tick_params(axis="y", length=0)
    if not y:
        axes.set_yticks([])
    return axes


def to_svg(axes: Axes) -> str:
    """A chart as an SVG element. Text stays text, and equal charts have equal bytes."""
    if axes.get_legend_handles_labels()[0]:
        spacing = {"handlelength": 1, "handletextpad": 0.4, "columnspacing": 1.2, "borderaxespad": 0, "borderpad": 0}
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=99, fontsize=11, **spacing)  # the page clips it
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure: Any = axes.figure
    figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    _, start, svg = file.getvalue().partition("<svg")
    svg = re.sub(r'<g id="\w+">', "<g>", svg)  # ids that all charts of a page would share
    return f'{start} role="img"{svg}'.replace(">", f"><title>{escape(axes.get_title(loc='left'))}</title>", 1)
