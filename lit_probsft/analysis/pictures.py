"""Pictures of what was measured; they need nothing but the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_probsft.analysis.advice import PAPER

_BANDS = {"weak": (0.0, 0.1), "intermediate": (0.45, 0.65), "strong": (0.75, 1.0)}
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#c96a12", "#777777"


def draw_capability(result: dict[str, Any], bins: Sequence[tuple[float, int]], path: Path) -> None:
    """A PNG of four panels: mean p among the paper's, p in log-odds, by place in the answer, calibration.

    Args:
        result: as `capability.json`.
        bins: centre in log-odds and tokens of each bin.
        path: of the file.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 7), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2)
        _levels(axes[0, 0], result)
        _log_odds(axes[0, 1], result, bins)
        _places(axes[1, 0], result)
        _calibration(axes[1, 1], result)
        figure.suptitle(f"{result['model']}: {result['rows']} rows, {result['tokens']} supervised tokens")
        figure.savefig(path, dpi=130, format="png")


def _levels(axis: Any, result: dict[str, Any]) -> None:
    for name, (low, high) in _BANDS.items():
        axis.axvspan(low, high, color=_GREY, alpha=0.15, lw=0)
        axis.text(
            (low + high) / 2, 1.03, name, ha="center", va="bottom", color=_GREY, transform=axis.get_xaxis_transform()
        )
    rows = {"this model": (result["mean_prob"], result["interval"] or [result["mean_prob"]] * 2, _BLUE)}
    for name, (low, high) in PAPER["mean_prob"].items():
        rows[f"paper, {name.split(': ')[1]}"] = ((low + high) / 2, [low, high], _ORANGE)
    for place, (middle, (low, high), colour) in enumerate(rows.values()):
        axis.plot([low, high], [place, place], color=colour, lw=3, solid_capstyle="round")
        if colour == _BLUE:
            axis.plot(middle, place, "o", color=colour)
            axis.annotate(
                f"{middle:.3f}", (middle, place), (0, 7), textcoords="offset points", ha="center", color=colour
            )
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.7), xlabel="mean p over supervised tokens")
    axis.set_yticks(range(len(rows)), list(rows))


def _log_odds(axis: Any, result: dict[str, Any], bins: Sequence[tuple[float, int]]) -> None:
    total = sum(count for _, count in bins)
    seen = [place for place, (_, count) in enumerate(bins) if count]
    shown = bins[max(seen[0] - 2, 0) : seen[-1] + 3]
    axis.bar([odds for odds, _ in shown], [count / total for _, count in shown], width=0.25, color=_BLUE, alpha=0.6)
    axis.set(xlabel="log-odds of p, and p above", ylabel="share of tokens")
    ticks = {-9.21: ".0001", -4.595: ".01", 0.0: ".5", 4.595: ".99", 9.21: ".9999"}
    top = axis.secondary_xaxis("top")
    low, high = axis.get_xlim()
    inside = {odds: text for odds, text in ticks.items() if low < odds < high}
    top.set_xticks(list(inside), list(inside.values()))
    beside = axis.twinx()
    quantiles = result["quantiles"]
    beside.plot([v["log_odds"] for v in quantiles.values()], [float(q) for q in quantiles], color=_BLUE, marker=".")
    beside.set(ylim=(0, 1), ylabel="share of tokens below (line)")


def _places(axis: Any, result: dict[str, Any]) -> None:
    entries = result["by_position"]
    labels = [f"{e['from'] + 1}" if e["from"] == e["to"] else f"{e['from'] + 1}-{e['to'] + 1}" for e in entries]
    axis.plot(labels, [e["mean_prob"] for e in entries], "o-", color=_BLUE, label="mean p")
    axis.plot(labels, [e["accuracy"] for e in entries], "s--", color=_ORANGE, label="accuracy")
    highest = max(max(e["mean_prob"], e["accuracy"]) for e in entries)
    axis.set(ylim=(0, min(1.15 * highest, 1) or 1), xlabel="place in the answer (tokens)")
    axis.tick_params(axis="x", rotation=30)
    axis.legend(frameon=False)


def _calibration(axis: Any, result: dict[str, Any]) -> None:
    entries = result["calibration"]["bins"]
    total = sum(e["tokens"] for e in entries)
    axis.plot([0, 1], [0, 1], color=_GREY, lw=1)
    axis.scatter(
        [e["confidence"] for e in entries],
        [e["accuracy"] for e in entries],
        s=[20 + 300 * e["tokens"] / total for e in entries],
        color=_BLUE,
        alpha=0.7,
    )
    error = result["calibration"]["error"]
    axis.set(
        xlim=(0, 1), ylim=(0, 1), xlabel=f"largest p (calibration error {error:.3f})", ylabel="how often it is right"
    )
