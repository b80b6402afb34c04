"""A comparison as a table in the terminal, Markdown, LaTeX and CSV, and as a picture."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from rich import box
from rich.table import Table

from lit_probsft.analysis.page import visible
from lit_probsft.analysis.plotting import SERIES, chart_style
from lit_probsft.evaluation.comparison import Comparison, Entry

HEADS = ("task", "result", "%", "95%", "difference", "95%", "p")
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def to_terminal(comparison: Comparison) -> Table:
    """A table for `rich`."""
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(HEADS):
        table.add_column(head, justify="left" if index < 2 else "right", overflow="fold")
    for cells in rows_of(comparison):
        table.add_row(*map(Text, cells))
    return table


def to_markdown(comparison: Comparison) -> str:
    """A table of GitHub's Markdown, and the notes."""
    lines = [HEADS, ("---", "---", *["---:"] * 5), *rows_of(comparison)]
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in lines]
    return "\n".join([*rows, "", *(f"{note}  " for note in comparison.notes), ""])


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
    """All numbers, from 0 to 1 and with all digits; empty where there is none."""
    heads = ("task", "metric", "result", "questions", "mean", "low", "high")
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow([*heads, "paired_questions", "difference", "difference_low", "difference_high", "p"])
    for entry in comparison.entries:
        low, high = entry.interval or (None, None)
        cells = [entry.task, entry.metric, entry.label, entry.questions, entry.mean, low, high]
        if (found := entry.difference) is not None:
            cells += [found.questions, found.mean, *(found.interval or (None, None)), found.p]
        table.writerow([*cells, *[None] * (12 - len(cells))])
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

        labels = list(dict.fromkeys(entry.label for entry in comparison.entries))
        tasks = list(dict.fromkeys(map(_name, comparison.entries)))
        place, ticks = 0.0, []
        figure = Figure(figsize=(8, 0), layout="constrained")
        axes = figure.subplots()
        for task in tasks:
            entries = [entry for entry in comparison.entries if _name(entry) == task]
            ticks.append(place + (len(entries) - 1) / 2)
            for entry in entries:
                color = SERIES[labels.index(entry.label) % len(SERIES)]
                low, high = entry.interval or (entry.mean, entry.mean)
                axes.plot([100 * low, 100 * high], [place, place], color=color, linewidth=2)
                fill = color if entry.interval else "white"
                axes.plot(100 * entry.mean, place, "o", color=color, markerfacecolor=fill, label=visible(entry.label))
                place += 1
            place += 1
        figure.set_figheight(1.2 + 0.2 * place + 0.2 * len(labels))
        axes.set(xlabel="%", ylim=(place - 1, -1))
        axes.set_yticks(ticks, [visible(task) for task in tasks])
        axes.grid(axis="x", color="#e7e7e4")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=3)
        figure.savefig(path, dpi=150, format=kind)


def rows_of(comparison: Comparison) -> list[tuple[str, ...]]:
    """The cells of each entry. The first entry of a task has the task's name and number of questions."""
    rows: list[tuple[str, ...]] = []
    last = ""
    for entry in comparison.entries:
        name = _name(entry)
        title = "" if name == last else f"{name} ({entry.questions})" if entry.questions else name
        last = name
        found = entry.difference
        rows.append((
            title,
            visible(entry.label),
            f"{100 * entry.mean:.1f}",
            _interval(entry.interval, ".1f"),
            "" if found is None else f"{100 * found.mean:+.1f}",
            "" if found is None else _interval(found.interval, "+.1f"),
            "" if found is None or found.p is None else "<0.001" if found.p < 0.001 else f"{found.p:.3f}",
        ))  # fmt: skip
    return rows


def _interval(ends: tuple[float, float] | None, form: str) -> str:
    return f"[{', '.join(format(100 * end, form) for end in ends)}]" if ends else ""


def _name(entry: Entry) -> str:
    return visible(entry.task if entry.metric == "accuracy" else f"{entry.task}, {entry.metric}")
