"""capability.png: four charts of p of the training tokens before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_probsft.analysis.advice import BANDS, PAPER
from lit_probsft.analysis.audit import Audit
from lit_probsft.analysis.plotting import SERIES, chart_style
from lit_probsft.analysis.survey import IGNORANT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREEN, _ORANGE, _BLUE, *_ = SERIES
_GREY = "#777777"


def draw_capability(result: dict[str, Any], bins: Sequence[tuple[float, int]], audit: Audit, path: Path) -> None:
    """Write a PNG with four charts: the rows by confidence and mean p, p in log-odds, p by position, calibration.

    Args:
        result: the content of `capability.json`.
        bins: the center, in log-odds, and the number of tokens of each bin.
        audit: the rows.
        path: file to write.
    """
    with chart_style(font_size=9):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        _map(axes[0, 0], result, audit)
        _log_odds(axes[0, 1], result, bins)
        _positions(axes[1, 0], result)
        _calibration(axes[1, 1], result)
        figure.suptitle(f"{result['model']}: {result['rows']} rows, {result['tokens']} supervised tokens")
        figure.savefig(path, dpi=130, format="png")


def _map(axes: Axes, result: dict[str, Any], audit: Audit) -> None:
    """The rows by what the model believes and how far the labels agree, with the bands of mean p."""
    for name, (low, high) in BANDS.items():
        axes.axhspan(low, high, color=_GREY, alpha=0.15, lw=0)
        axes.text(0.01, (low + high) / 2, name, va="center", color=_GREY)
    axes.axvspan(0, IGNORANT, color=_ORANGE, alpha=0.08, lw=0)
    axes.text(IGNORANT / 2, 0.3, "does not know", ha="center", va="center", color=_ORANGE)
    axes.text(0.85, 0.27, "knows and is\ncontradicted", ha="center", va="center", color=_ORANGE)
    axes.text(0.55, 0.7, "agrees", ha="center", va="center", rotation=38, color=_GREEN)
    axes.plot([0, 1], [0, 1], color=_GREY, lw=1)
    wrong = np.isin(np.arange(len(audit.order)), audit.wrong)
    for chosen, color, label in ((~wrong, _BLUE, "rows"), (wrong, _ORANGE, "rows that seem wrong")):
        if chosen.any():
            x, y = audit.per_row["confidence"][chosen], audit.per_row["mean_prob"][chosen]
            axes.plot(x, y, ".", color=color, alpha=0.5, label=label)
    mean = result["mean_prob"]
    axes.plot(result["confidence"], mean, "D", color=_GREEN, label=f"all tokens: {mean:.3f}")
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="confidence: mean p of the most probable token", ylabel="mean p of the label"
    )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    paper = axes.twinx()
    ranges = [(sum(ends) / 2, name.split(": ")[1]) for name, ends in PAPER["mean_prob"].items()]
    paper.set(ylim=(0, 1))
    paper.set_yticks([middle for middle, _ in ranges], [f"paper, {name}" for _, name in ranges])


def _log_odds(axes: Axes, result: dict[str, Any], bins: Sequence[tuple[float, int]]) -> None:
    total = sum(count for _, count in bins)
    seen = [place for place, (_, count) in enumerate(bins) if count]
    shown = bins[max(seen[0] - 2, 0) : seen[-1] + 3]
    axes.bar([odds for odds, _ in shown], [count / total for _, count in shown], width=0.25, color=_BLUE, alpha=0.6)
    axes.set(xlabel="log-odds of the label's p; p at the top", ylabel="share of tokens")
    ticks = {-9.21: ".0001", -4.595: ".01", 0.0: ".5", 4.595: ".99", 9.21: ".9999"}
    top = axes.secondary_xaxis("top")
    low, high = axes.get_xlim()
    inside = {odds: text for odds, text in ticks.items() if low < odds < high}
    top.set_xticks(list(inside), list(inside.values()))
    share_axes = axes.twinx()
    quantiles = result["quantiles"]
    share_axes.plot([v["log_odds"] for v in quantiles.values()], [float(q) for q in quantiles], color=_BLUE, marker=".")
    share_axes.set(ylim=(0, 1), ylabel="share of tokens below (line)")


def _positions(axes: Axes, result: dict[str, Any]) -> None:
    entries = result["by_position"]
    labels = [f"{e['from'] + 1}" if e["from"] == e["to"] else f"{e['from'] + 1}-{e['to'] + 1}" for e in entries]
    axes.plot(labels, [e["mean_prob"] for e in entries], "o-", color=_BLUE, label="mean p")
    axes.plot(labels, [e["accuracy"] for e in entries], "s--", color=_ORANGE, label="accuracy")
    highest = max(max(e["mean_prob"], e["accuracy"]) for e in entries)
    axes.set(ylim=(0, min(1.15 * highest, 1) or 1), xlabel="position in the answer (tokens)")
    axes.tick_params(axis="x", rotation=30)
    axes.legend()


def _calibration(axes: Axes, result: dict[str, Any]) -> None:
    entries = result["calibration"]["bins"]
    total = sum(e["tokens"] for e in entries)
    axes.plot([0, 1], [0, 1], color=_GREY, lw=1)
    axes.scatter(
        [e["confidence"] for e in entries],
        [e["accuracy"] for e in entries],
        s=[20 + 300 * e["tokens"] / total for e in entries],
        color=_BLUE,
        alpha=0.7,
    )
    error = result["calibration"]["error"]
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel=f"p of the most probable token (calibration error {error:.3f})",
        ylabel="share of them that are the label",
    )
