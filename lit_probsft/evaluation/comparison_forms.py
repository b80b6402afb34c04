"""A comparison as a table in Markdown, LaTeX and CSV, and as a picture."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lit_probsft.analysis.page import visible
from lit_probsft.analysis.plotting import SERIES, chart_style
from lit_probsft.evaluation.comparison import Comparison, Entry

HEADS = ("task", "result", "%", "95%", "difference", "95%", "p")
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"<": "$<$", ">": "$>$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def to_markdown(comparison: Comparison) -> str:
    """A table of GitHub's Markdown, aligned so that it can be read as it is, and the notes."""
    rows = [[cell.replace("|", r"\|") for cell in cells] for cells in (HEADS, *rows_of(comparison))]
    widths = [max(2, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], "-" * widths[1], *("-" * (width - 1) + ":" for width in widths[2:])])
    lines = [
        " | ".join(cell.ljust(width) if place < 2 else cell.rjust(width) for place, cell, width in row)
        for row in (zip(range(len(widths)), cells, widths, strict=True) for cells in rows)
    ]
    return "\n".join([*(f"| {line} |" for line in lines), "", *(f"{note}  " for note in comparison.notes), ""])


def to_latex(comparison: Comparison) -> str:
    """A `tabular` for the package booktabs, with the notes as comments."""

    def row(cells: tuple[str, ...]) -> str:
        texts = ("".join(_LATEX.get(character, character) for character in cell) for cell in cells)
        return " & ".join(f"${text}$" if re.match(r"[-+\[][-+\d]", text) else text for text in texts) + r" \\"

    rows = []
    for cells in rows_of(comparison):
        rows += [r"\midrule"] * bool(cells[0]) + [row(cells)]
    notes = [f"% {note}" for note in comparison.notes]
    table = [r"\begin{tabular}{llrrrrr}", r"\toprule", row(HEADS), *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*notes, *table, ""])


def to_csv(comparison: Comparison) -> str:
    """The fields of each entry, with all digits; empty where there is none."""
    file = io.StringIO()
    table = csv.DictWriter(file, [field.name for field in fields(Entry)], lineterminator="\n")
    table.writeheader()
    table.writerows(map(asdict, comparison.entries))
    return file.getvalue()


def draw(comparison: Comparison, path: Path, kind: str) -> None:
    """Draw the numbers with their intervals, by task and result; those of the paper are hollow.

    Args:
        comparison: what to draw.
        path: file to write.
        kind: `png` or `svg`.
    """
    with chart_style(font_size=10):
        from matplotlib.figure import Figure

        labels = list(dict.fromkeys(entry.result for entry in comparison.entries))
        tasks = list(dict.fromkeys(map(_name, comparison.entries)))
        place, ticks = 0.0, []
        figure = Figure(figsize=(8, 0), layout="constrained")
        axes = figure.subplots()
        for task in tasks:
            entries = [entry for entry in comparison.entries if _name(entry) == task]
            ticks.append(place + (len(entries) - 1) / 2)
            for entry in entries:
                turn, place_of_color = divmod(labels.index(entry.result), len(SERIES))
                color, marker = SERIES[place_of_color], "osD^vP"[turn % 6]
                low, high = (entry.mean if end is None else end for end in (entry.low, entry.high))
                axes.plot([100 * low, 100 * high], [place, place], color=color, linewidth=2)
                fill = "white" if entry.questions is None else color
                style: dict[str, Any] = {"color": color, "marker": marker, "markerfacecolor": fill, "linestyle": ""}
                axes.plot(100 * entry.mean, place, **style, label=visible(entry.result))
                place += 1
            place += 1
        figure.set_figheight(1.2 + 0.2 * place + 0.2 * len(labels))
        axes.set(xlabel="%", ylim=(place - 1, -1))
        axes.set_yticks(ticks, [visible(task) for task in tasks])
        axes.grid(axis="x", color="#e7e7e4")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        columns = max(1, min(3, 90 // (max(map(len, handles)) + 6)))
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=columns)
        figure.savefig(path, dpi=150, format=kind)


def rows_of(comparison: Comparison) -> list[tuple[str, ...]]:
    """The cells of each entry. The first entry of a task has the task's name and number of questions."""
    rows: list[tuple[str, ...]] = []
    last = ""
    for entry in comparison.entries:
        name = _name(entry)
        title = "" if name == last else f"{name} ({entry.questions})" if entry.questions else name
        last = name
        p = entry.p
        rows.append((
            title,
            visible(entry.result),
            _percent(".1f", entry.mean),
            _percent(".1f", entry.low, entry.high),
            _percent("+.1f", entry.difference),
            _percent("+.1f", entry.difference_low, entry.difference_high),
            "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}",
        ))  # fmt: skip
    return rows


def _percent(form: str, *values: float | None) -> str:
    text = ", ".join(format(100 * value, form) for value in values if value is not None)
    return f"[{text}]" if text and len(values) > 1 else text


def _name(entry: Entry) -> str:
    return visible(entry.task if entry.metric == "accuracy" else f"{entry.task}, {entry.metric}")
