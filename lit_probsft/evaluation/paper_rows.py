"""Results of Li et al. (arXiv 2510.00526), which `compare` shows next to results for the same model and task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MATH = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")
"""The tasks of the paper's math table, avg@16. Its means are over these five."""

_MATH_MEANS = ("mean", "accuracy", ("base", "NLL", "NLL of p >= 0.2", "-p"))
_MATH = ("accuracy", ("NLL", "NLL of p >= 0.2", "-p"))
_FLIPPED = ("NLL", "-p", "NLL, 30% of labels flipped", "-p, 30% of labels flipped")
_TABLE: tuple[tuple[str, str, tuple[str, ...], dict[str, tuple[float, ...]]], ...] = (
    (*_MATH_MEANS, {
        "llama-3.1-8b": (0.91, 6.49, 10.33, 10.56),
        "deepseek-math-7b-base": (2.49, 11.10, 18.65, 19.11),
        "qwen2.5-math-1.5b": (14.97, 17.00, 32.04, 32.75),
        "qwen2.5-math-7b": (20.23, 22.67, 38.16, 36.51),
    }),
    ("mean", "accuracy", ("-p^10",), {"qwen2.5-math-1.5b": (31.50,)}),
    ("math500", *_MATH, {"qwen2.5-math-1.5b": (42.52, 63.95, 65.27)}),
    ("minerva_math", *_MATH, {"qwen2.5-math-1.5b": (12.71, 24.79, 26.18)}),
    ("olympiadbench", *_MATH, {"qwen2.5-math-1.5b": (12.09, 26.08, 26.66)}),
    ("aime24", *_MATH, {"qwen2.5-math-1.5b": (0.62, 7.09, 6.88)}),
    ("amc23", *_MATH, {"qwen2.5-math-1.5b": (17.03, 38.28, 38.13)}),
    ("medical", "mean of groups", ("NLL", "-p"), {
        "llama-3.2-3b": (37.99, 36.29),
        "llama-3.1-8b": (47.23, 45.89),
        "qwen2.5-1.5b": (35.13, 35.02),
        "qwen2.5-math-7b": (33.56, 33.83),
    }),
    ("figlet", "accuracy", ("NLL", "-p"), {
        "llama-3.2-3b": (1.08, 0), "llama-3.1-8b": (1.34, 0), "qwen2.5-1.5b": (0.60, 0), "qwen2.5-7b": (35.20, 0),
    }),
    ("figlet", "jaro_winkler_paper", ("NLL", "-p"), {
        "llama-3.2-3b": (44.39, 2.43),
        "llama-3.1-8b": (43.59, 10.15),
        "qwen2.5-1.5b": (32.98, 8.36),
        "qwen2.5-7b": (82.48, 10.15),
    }),
    ("mmlu_prox", "mean of groups", ("base", "NLL", "-p"), {
        "llama-3.1-8b": (7.1, 16.1, 11.5), "qwen2.5-7b": (7.7, 16.2, 13.3),
    }),
    ("openbookqa", "accuracy", _FLIPPED, {
        "qwen2.5-7b": (91.0, 86.2, 27.2, 85.0), "qwen2.5-14b": (95.0, 93.4, 27.0, 91.6),
    }),
)  # fmt: skip
"""Task (`mean` over those of `MATH`), metric, what the model was trained with, percentages by model."""


class PaperRow(NamedTuple):
    """A number of the paper: the row's name in a table, and a value from 0 to 1."""

    label: str
    value: float


def paper_rows(models: Iterable[str], task: str, metric: str) -> list[PaperRow]:
    """The paper's rows for a task and metric, and for models or bases with these names: hub ids, or folders."""
    names = [model.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-") for model in models]
    return [
        PaperRow(f"paper: {model}, {objective}", value / 100)
        for of_task, of_metric, objectives, percentages in _TABLE
        if (of_task, of_metric) == (task, metric)
        for model in dict.fromkeys(names)
        for objective, value in zip(objectives, percentages.get(model, ()), strict=False)
    ]
