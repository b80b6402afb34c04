"""The curves of a run: metrics.csv as charts over optimizer steps."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_probsft.analysis.page import visible
from lit_probsft.analysis.plotting import SERIES, new_chart, to_svg
from lit_probsft.errors import UserError

Points = NDArray[np.float64]

_PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("NLL", "nats", ("train/nll", "val/nll", "val/*/nll")),
    ("Accuracy of the answers", "share", ("eval/*/accuracy",)),
    ("Mean p of the target", "p", ("train/mean_p", "val/mean_p", "val/*/mean_p")),
    ("Accuracy of the top-1 token", "share", ("train/accuracy", "val/accuracy")),
    ("Expected calibration error", "ECE", ("val/ece", "val/*/ece")),
    ("Entropy", "nats", ("val/entropy",)),
    ("Loss: the objective's own value", "f", ("train/loss", "val/loss")),
    ("Norm of the gradient", "norm", ("train/grad_norm",)),
    ("Learning rate", "lr", ("lr",)),
)
"""Title, unit and metrics of each chart; `*` is the name of a set."""

MAX_POINTS = 300
"""Longer curves are averaged down to this many points."""


def read_metrics(path: Path) -> dict[str, Points]:
    """Steps and values of each metric, (n, 2), from a metrics.csv; skips what is not a finite number.

    Raises:
        UserError: the file is not a metrics.csv.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if None in row or None in row.values():
                    continue  # the incomplete last line of an interrupted run
                for name, text in row.items():
                    if name != "step" and text and math.isfinite(value := float(text)):
                        found.setdefault(name, []).append((float(row["step"]), value))
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(str(path), f"expected a table with a column 'step': {error}") from error
    return {name: np.array(points) for name, points in found.items()}


def draw_curves(metrics: Mapping[str, Points]) -> list[tuple[str, str]]:
    """Charts with captions, one for each panel that has a metric. A set has the same colour in all of them."""
    drawn = []
    colours: dict[str, str] = {}
    for title, y, patterns in _PANELS:
        shown = {name: points for pattern in patterns for name, points in metrics.items() if _matches(name, pattern)}
        if not shown:
            continue
        axes = new_chart(title, "step", y)
        for name, points in shown.items():
            label = name.rpartition("/")[0]
            colour = colours.setdefault(label, SERIES[len(colours) % len(SERIES)])
            steps, values = _averaged(points).T
            marker = "o" if len(steps) == 1 else None
            axes.plot(steps, values, color=colour, marker=marker, label=visible(label))
        axes.margins(x=0)
        averaged = max(len(points) for points in shown.values()) > MAX_POINTS
        drawn.append((to_svg(axes), f"Averaged down to {MAX_POINTS} points." if averaged else ""))
    return drawn


def _matches(name: str, pattern: str) -> bool:
    if "*" not in pattern:
        return name == pattern
    start, end = pattern.split("*")
    # val/nll/SOURCE, a source of the validation set, does not match val/*/nll.
    return name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(end)


def _averaged(points: Points) -> Points:
    if len(points) <= MAX_POINTS:
        return points
    return np.array([part.mean(0) for part in np.array_split(points, MAX_POINTS)])
