"""The charts of a run's page, as SVG elements; draw them within `chart_style`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_probsft.analysis.advice import BANDS
from lit_probsft.analysis.page import visible
from lit_probsft.analysis.plotting import AFTER, BEFORE, GAIN, LOSS, new_chart, to_svg
from lit_probsft.analysis.tokens import EDGES, ChangeByBin, Tokens, Values, log_odds
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_WHEN = {"before": BEFORE, "after": AFTER}
_P_TICKS = np.array([1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])


def nll_changes(changes: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """The change of the NLL by set, in nats (`forgetting` of run.json)."""
    differences = {name: (metrics.get("nll") or {}).get("difference") for name, metrics in changes.items()}
    values = {visible(name): value for name, value in differences.items() if value is not None and np.isfinite(value)}
    axes = new_chart("Change of the NLL", "nats", "", (440, 86 + 26 * max(len(values), 1)))
    colours = [GAIN if value < 0 else LOSS for value in values.values()]
    bars = axes.barh(range(len(values)), list(values.values()), 0.7, color=colours)
    axes.bar_label(bars, fmt="%+.3g", padding=6, fontsize=11)
    for row, (name, value) in enumerate(values.items()):
        _write(axes, name, 0, row, on_right=value <= 0)
    axes.use_sticky_edges = False
    axes.margins(x=0.3)  # room for the names on one side and the numbers on the other
    axes.invert_yaxis()
    return to_svg(axes)


def capability_scale(mean: float, interval: Any, by_source: Any) -> str:
    """Mean p and its interval, of all rows and of each source, over the bands of the three levels."""
    rows: dict[str, Mapping[str, Any]] = {"all": {"mean_prob": mean, "interval": interval}}
    if isinstance(by_source, Mapping):
        rows |= {str(k): v if isinstance(v, Mapping) else {"mean_prob": v} for k, v in by_source.items()}
    rows = {name: row for name, row in rows.items() if isinstance(row.get("mean_prob"), int | float)}
    axes = new_chart("Mean p before training", "p", "", (440, 104 + 24 * len(rows)))
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.2, -1))
    for level, band in BANDS.items():
        axes.axvspan(*band, color="#eef3ee", linewidth=0)
        axes.text(sum(band) / 2, -0.75, level, ha="center", va="center", fontsize=11)
    for place, (name, row) in enumerate(rows.items()):
        value, ends = row["mean_prob"], row.get("interval")
        if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends):
            axes.plot(ends, [place, place], color=AFTER)
        axes.plot(value, place, "o", color=AFTER)
        _write(axes, f"{visible(name)} {value:.3g}", value, place, on_right=value < 0.6)
    return to_svg(axes)


def embedded_png(path: Path) -> str:
    """A PNG file as an HTML image that contains it.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror or error}") from error
    return f'<img alt="" src="data:image/png;base64,{content}"/>'


def weight_curve(tokens: Tokens) -> str:
    """W over p; two curves if a schedule has changed W."""
    p = tokens.arrays["weight_p"]
    start, end = (tokens.arrays[f"weight_{when}"] for when in _WHEN)
    axes = new_chart("Weight of the objective", "p", "W(p)")
    if np.allclose(start, end, rtol=1e-6, atol=0):
        axes.plot(p, end, color=AFTER)
    else:
        axes.plot(p, start, color=BEFORE, label="at the start")
        axes.plot(p, end, color=AFTER, label="at the end")
    axes.set_xlim(0, 1)
    values = np.concatenate([start, end])
    axes.set_ylim(bottom=values[np.isfinite(values)].min(initial=0))
    return to_svg(axes)


def histogram(tokens: Tokens) -> str:
    """Share of tokens by p, before and after."""
    shares = {when: tokens.histogram(when) for when in _WHEN if tokens.measured(when)}
    return _paired_bars("p of the target", "share of tokens", shares)


def gradient_mass(tokens: Tokens) -> str:
    """W summed by bin of p, before and after."""
    sums = {when: tokens.pull(when) for when in _WHEN if tokens.measured(when)}
    return _paired_bars("Gradient mass by p", "W per token", {k: v for k, v in sums.items() if v is not None})


def _paired_bars(title: str, y: str, heights: Mapping[str, Values]) -> str:
    axes = new_chart(title, "p (log-odds scale)", y)
    for (when, colour), start in zip(_WHEN.items(), (0, 0.5), strict=True):
        if when in heights:
            axes.bar(EDGES[:-1] + start, heights[when], 0.45, align="edge", color=colour, label=when)
    _scale_by_log_odds(axes.xaxis)
    return to_svg(axes)


def change_by_bin(change: ChangeByBin) -> str:
    """Change of log p by bin of p before: mean, and a line from the lower to the upper quartile."""
    filled = change.tokens > 0
    middle, mean = (EDGES[:-1] + 0.5)[filled], change.mean[filled]
    axes = new_chart("Change of log p by p before", "p before (log-odds scale)", "nats")
    axes.bar(middle, mean, 0.95, color=np.where(mean > 0, GAIN, LOSS))
    axes.vlines(middle, change.low[filled], change.high[filled], color="#222222", linewidth=1.5)
    axes.axhline(0, color="#999999", linewidth=1)
    _scale_by_log_odds(axes.xaxis)
    return to_svg(axes)


def before_after(change: ChangeByBin) -> str:
    """Mean p after training over mean p before, by bin of p before."""
    filled = change.tokens > 0
    before, after = (
        log_odds(np.log(mean[filled].clip(1e-300))).clip(EDGES[0], EDGES[-1])
        for mean in (change.p_before, change.p_after)
    )
    axes = new_chart("Likelihood before and after", "mean p before (log-odds scale)", "mean p after")
    axes.axline((0, 0), slope=1, color=BEFORE, linestyle="--")
    axes.plot(before, after, "o-", color=AFTER)
    _scale_by_log_odds(axes.xaxis)
    _scale_by_log_odds(axes.yaxis)
    return to_svg(axes)


def reliability(tokens: Tokens) -> str:
    """Accuracy over confidence, by bin of confidence."""
    axes = new_chart("Calibration", "p of the top-1 token", "share right")
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linestyle="--")
    for when, colour in _WHEN.items():
        if (bins := tokens.calibration(when)) is not None:
            count, confidence, right = bins[bins[:, 0] > 0].T
            axes.plot(confidence / count, right / count, "o-", color=colour, label=when)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return to_svg(axes)


def _scale_by_log_odds(axis: Axis) -> None:
    """The range of the bins of p, with ticks that name p."""
    axis.set_view_interval(EDGES[0], EDGES[-1], ignore=True)
    axis.set_ticks(log_odds(np.log(_P_TICKS)).tolist(), [f"{p:g}".removeprefix("0") for p in _P_TICKS])


def _write(axes: Axes, text: str, x: float, y: float, *, on_right: bool) -> None:
    """A text a little to the right or to the left of a point."""
    side, align = (1, "left") if on_right else (-1, "right")
    axes.annotate(text, (x, y), (9 * side, 0), textcoords="offset points", ha=align, va="center", fontsize=11)
