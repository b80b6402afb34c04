"""capability.png: four charts of p of the training tokens before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_probsft.analysis.advice import BANDS, PAPER
from lit_probsft.analysis.plotting import SERIES, chart_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREEN, _ORANGE, _BLUE, *_ = SERIES
_GREY = "#777777"


def draw_capability(result: dict[str, Any], bins: Sequence[tuple[float, int]], path: Path) -> None:
    """Write a PNG with four charts: mean p and the paper's, p in log-odds, p by position, calibration.

    Args:
        result: the content of `capability.json`.
        bins: the center, in log-odds, and the number of tokens of each bin.
        path: file to write.
    """
    with chart_style(font_size=9):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        _levels(axes[0, 0], result)
        _log_odds(axes[0, 1], result, bins)
        _positions(axes[1, 0], result)
        _calibration(axes[1, 1], result)
        figure.suptitle(f"{result['model']}: {result['rows']} rows, {result['tokens']} supervised tokens")
        figure.savefig(path, dpi=130, format="png")


def _levels(axes: Axes, result: dict[str, Any]) -> None:
    for name, (low, high) in BANDS.items():
        axes.axvspan(low, high, color=_GREY, alpha=0.15, lw=0)
        axes.text(
            (low + high) / 2, 1.03, name, ha="center", va="bottom", color=_GREY, transform=axes.get_xaxis_transform()
        )
    rows = {"this model": (result["mean_prob"], result["interval"] or [result["mean_prob"]] * 2, _BLUE)}
    for name, (low, high) in PAPER["mean_prob"].items():
        rows[f"paper, {name.split(': ')[1]}"] = ((low + high) / 2, [low, high], _ORANGE)
    for place, (middle, (low, high), colour) in enumerate(rows.values()):
        axes.plot([low, high], [place, place], color=colour, lw=3, solid_capstyle="round")
        if colour == _BLUE:
            axes.plot(middle, place, "o", color=colour)
            axes.annotate(
                f"{middle:.3f}", (middle, place), (0, 7), textcoords="offset points", ha="center", color=colour
            )
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.7), xlabel="mean p over supervised tokens")
    axes.set_yticks(range(len(rows)), list(rows))


def _log_odds(axes: Axes, result: dict[str, Any], bins: Sequence[tuple[float, int]]) -> None:
    total = sum(count for _, count in bins)
    seen = [place for place, (_, count) in enumerate(bins) if count]
    shown = bins[max(seen[0] - 2, 0) : seen[-1] + 3]
    axes.bar([odds for odds, _ in shown], [count / total for _, count in shown], width=0.25, color=_BLUE, alpha=0.6)
    axes.set(xlabel="log-odds of p, and p above", ylabel="share of tokens")
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
        xlim=(0, 1), ylim=(0, 1), xlabel=f"p of the top-1 token (calibration error {error:.3f})", ylabel="share right"
    )
