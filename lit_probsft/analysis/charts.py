"""The pictures of a run's page."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lit_probsft.analysis.svg import AFTER, BEFORE, COLOURS, GAIN, LOSS, Plot, extent
from lit_probsft.analysis.tokens import EDGES, ChangeByBin, Tokens, log_odds
from lit_probsft.errors import UserError

_EDGES = list(pairwise(EDGES.tolist()))
_HALVES = [(low, (low + high) / 2) for low, high in _EDGES], [((low + high) / 2, high) for low, high in _EDGES]
_SPAN = (float(EDGES[0]), float(EDGES[-1]))
_P_TICKS = [
    (math.log(p / (1 - p)), f"{p:g}".removeprefix("0")) for p in (1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
]
_WHEN = (("before", BEFORE), ("after", AFTER))

_PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("NLL", "nats", ("train/nll", "val/nll", "val/*/nll")),
    ("Mean p of the target", "p", ("train/mean_p", "val/mean_p", "val/*/mean_p")),
    ("Accuracy of the top-1 token", "share", ("train/accuracy", "val/accuracy")),
    ("Expected calibration error", "ECE", ("val/ece", "val/*/ece")),
    ("Entropy", "nats", ("val/entropy",)),
    ("Loss: the objective's own value", "f", ("train/loss", "val/loss")),
    ("Norm of the gradient", "norm", ("train/grad_norm",)),
    ("Learning rate", "lr", ("lr",)),
)
_MOST_POINTS = 300
"""Of a curve; a longer one is drawn as means of as many stretches."""


def gains(changes: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """By set, how the NLL has changed (see `changes.forgetting`)."""
    found = {name: (metrics.get("nll") or {}).get("difference") for name, metrics in changes.items()}
    values = {name: value for name, value in found.items() if value is not None}
    low, high = extent(list(values.values()), start=0.0)
    room = 0.3 * (high - low or 1)  # for the names on one side of zero, the numbers on the other
    plot = Plot(
        "Change of the NLL", "nats", "", (low - room, high + room), (len(values), 0), (440, 86 + 26 * len(values))
    )
    for place, (name, value) in enumerate(values.items()):
        plot.row(place, value, GAIN if value < 0 else LOSS)
        side = "end" if value > 0 else "start"
        plot.text(0, place + 0.5, f"\u2002{name}\u2002", side)
        plot.text(value, place + 0.5, f"\u2002{value:+.3g}\u2002", "start" if value > 0 else "end")
    return plot.render()


def capability_scale(mean: float, interval: Any, by_source: Any) -> str:
    """Mean p, and that of each source, on a scale with the levels of the paper."""
    parts = {"all": (mean, interval)}
    for name, found in by_source.items() if isinstance(by_source, Mapping) else ():
        value = found.get("mean_prob") if isinstance(found, Mapping) else found
        if isinstance(value, int | float):
            parts[str(name)] = value, found.get("interval") if isinstance(found, Mapping) else None
    plot = Plot("Mean p before training", "p", "", (0, 1), (len(parts) + 0.8, 0), (440, 104 + 24 * len(parts)))
    for low, high, label in ((0, 0.1, "weak"), (0.45, 0.65, "intermediate"), (0.75, 1, "strong")):
        plot.shade(low, high, "#eef3ee", label)
    for place, (name, (value, ends)) in enumerate(parts.items()):
        row = place + 1.2
        if isinstance(ends, list | tuple) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends):
            plot.line(list(ends), [row, row], AFTER)
        plot.points([value], [row], AFTER)
        plot.text(value, row, f"\u2002\u2002{name} {value:.3g}\u2002\u2002", "start" if value < 0.6 else "end")
    return plot.render()


def embedded(path: Path) -> str:
    """A PNG from a file, in the page itself."""
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {error.strerror or error}") from error
    return f'<img alt="" src="data:image/png;base64,{content}"/>'


def weight_curve(tokens: Tokens) -> str:
    """W over p; twice where a schedule has changed it."""
    p = tokens.arrays["weight_p"].tolist()
    curves = {when: tokens.arrays[f"weight_{when}"].tolist() for when, _ in _WHEN}
    plot = Plot("Weight of the objective", "p", "W(p)", (0, 1), extent(*curves.values(), start=0.0))
    if np.allclose(curves["before"], curves["after"], rtol=1e-6, atol=0):
        plot.line(p, curves["after"], AFTER)
    else:
        for when, colour in _WHEN:
            plot.line(p, curves[when], colour, f"at the {'start' if when == 'before' else 'end'}")
    return plot.render()


def histogram(tokens: Tokens) -> str:
    """Shares of tokens by p, before and after."""
    shares = {when: tokens.histogram(when).tolist() for when, _ in _WHEN if tokens.measured(when)}
    return _side_by_side("p of the target", "share of tokens", shares)


def pull_by_bin(tokens: Tokens) -> str:
    """Where the objective's pull comes from."""
    found = {when: tokens.pull(when) for when, _ in _WHEN if tokens.measured(when)}
    pulls = {when: pull.tolist() for when, pull in found.items() if pull is not None}
    return _side_by_side("Gradient mass by p", "W per token", pulls)


def _side_by_side(title: str, y: str, heights: Mapping[str, Sequence[float]]) -> str:
    plot = Plot(title, "p (log-odds scale)", y, _SPAN, extent(*heights.values(), start=0.0), x_ticks=_P_TICKS)
    for (when, colour), edges in zip(_WHEN, _HALVES, strict=True):
        if when in heights:
            plot.bars(edges, heights[when], colour, when)
    return plot.render()


def change_by_bin(change: ChangeByBin) -> str:
    """How far tokens have moved that began alike."""
    span = extent(change.mean.tolist(), change.low.tolist(), change.high.tolist(), start=0.0)
    plot = Plot("Change of log p by p before", "p before (log-odds scale)", "nats", _SPAN, span, x_ticks=_P_TICKS)
    mean = change.mean.tolist()
    plot.bars(_EDGES, mean, [GAIN if value > 0 else LOSS for value in mean])
    middles = [(low + high) / 2 for low, high in _EDGES]
    plot.spans(middles, change.low.tolist(), change.high.tolist(), "#222")
    return plot.render()


def before_after(change: ChangeByBin) -> str:
    """The likelihood after training against the one before."""
    names = "mean p before (log-odds scale)", "mean p after"
    plot = Plot("Likelihood before and after", *names, _SPAN, _SPAN, x_ticks=_P_TICKS, y_ticks=_P_TICKS)
    plot.line(_SPAN, _SPAN, BEFORE, dashed=True)
    there = change.tokens > 0
    ends = [log_odds(np.log(means[there])).tolist() for means in (change.p_before, change.p_after)]
    plot.line(ends[0], ends[1], AFTER)
    plot.points(ends[0], ends[1], AFTER)
    return plot.render()


def reliability(tokens: Tokens) -> str:
    """Accuracy over confidence, by bin."""
    plot = Plot("Calibration", "p of the top-1 token", "share right", (0, 1), (0, 1))
    plot.line([0, 1], [0, 1], "#bbb", dashed=True)
    for when, colour in _WHEN:
        if (bins := tokens.calibration(when)) is not None:
            filled = bins[bins[:, 0] > 0]
            prob, right = filled[:, 1] / filled[:, 0], filled[:, 2] / filled[:, 0]
            plot.line(prob.tolist(), right.tolist(), colour)
            plot.points(prob.tolist(), right.tolist(), colour, when)
    return plot.render()


def read_metrics(path: Path) -> dict[str, list[tuple[float, float]]]:
    """By metric, steps and values; what is no number is left out.

    Raises:
        UserError: it is no metrics.csv.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if None in row or None in row.values():
                    continue  # the last line of a run that was cut off
                for name, text in row.items():
                    if name != "step" and text and math.isfinite(value := float(text)):
                        found.setdefault(name, []).append((float(row["step"]), value))
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(str(path), f"expected a table with a column step, which cannot be read: {error}") from error
    return found


def curves(metrics: Mapping[str, Sequence[tuple[float, float]]]) -> list[tuple[str, str]]:
    """Pictures of metrics over steps, with captions; panels without a metric are left out. A set has one colour in all
    of them."""
    drawn = []
    colours: dict[str, str] = {}
    for title, y, wanted in _PANELS:
        chosen = {
            name: _thinned(points) for pattern in wanted for name, points in metrics.items() if _fits(name, pattern)
        }
        if not chosen:
            continue
        steps, values = ([point[axis] for points in chosen.values() for point in points] for axis in (0, 1))
        plot = Plot(title, "step", y, (min(steps), max(steps)), extent(values))
        for name, points in chosen.items():
            label = name.rpartition("/")[0]
            colour = colours.setdefault(label, COLOURS[len(colours) % len(COLOURS)])
            plot.line([x for x, _ in points], [value for _, value in points], colour, label)
        stretches = max(len(metrics[name]) for name in chosen) > _MOST_POINTS
        drawn.append((plot.render(), f"Means of up to {_MOST_POINTS} stretches." if stretches else ""))
    return drawn


def _fits(name: str, pattern: str) -> bool:
    if "*" not in pattern:
        return name == pattern
    start, end = pattern.split("*")
    # val/nll/SOURCE is of a source of the validation set, and begins otherwise.
    return name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(end)


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    if len(points) <= _MOST_POINTS:
        return points
    parts = np.array_split(np.array(points), _MOST_POINTS)
    return [(float(x), float(y)) for x, y in (part.mean(0) for part in parts)]
