"""`preview`: what is learnt of a few rows, in colour, and what is wrong with the others, without loading a model."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lit_probsft.analysis.page import escape, facts_table, page, visible, write_page
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from lit_probsft.data import InstructionDataModule

MEASURED = 2000
"""At most so many rows are tokenized for the counts; fewer are shown."""

_LOST = {
    "dropped": "dropped",
    "skipped": "cannot be used, where fit stops unless `data.on_bad_row: skip` is set",
}
_CUT = "the end of an answer is cut off by data.max_length, so that it is not learnt to stop there"
_STYLES = {"masked": "dim", "learnt": "bold green", "end": "black on green"}


@dataclass(frozen=True)
class Shown:
    """One row.

    Attributes:
        row: its place in the source.
        pieces: texts, each `masked`, `learnt` or the `end` of a turn.
        tokens, supervised: how many; supervised ones after the shift.
        length: tokens before anything was cut off.
    """

    row: int
    pieces: list[tuple[str, str]]
    tokens: int
    supervised: int
    length: int


@dataclass(frozen=True)
class Problem:
    """What is wrong with `rows` of the measured rows, of which `first` is the first."""

    what: str
    rows: int
    first: int

    def describe(self, measured: int) -> str:
        """In a line."""
        return f"{self.rows} of {measured} rows, from row {self.first} on: {visible(self.what)}"


@dataclass
class Preview:
    """Rows of a split, and what was found in those that were measured.

    Attributes:
        split: its name.
        rows: of the split; `measured` of them were tokenized, evenly spread. Of a stream, whose rows nobody has counted
            (None), the first.
        lengths: tokens of each measured row before anything is cut off, those that are skipped left out.
        tokens, supervised: in what is kept of them.
        truncated: how many are cut.
        problems: the commonest first.
        shown: some of the rows.
    """

    split: str
    rows: int | None
    measured: int
    lengths: list[int] = field(default_factory=list)
    tokens: int = 0
    supervised: int = 0
    truncated: int = 0
    problems: list[Problem] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    def facts(self) -> dict[str, str]:
        """What to say of the measured rows, by name."""
        if self.rows is None:
            facts = {"rows": f"the first {self.measured} of a stream"}
        else:
            part = f", {self.measured} of them measured" if self.measured < self.rows else ""
            facts = {"rows": f"{self.rows}{part}"}
        if self.lengths:
            ordered = sorted(self.lengths)
            middle, high = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
            facts["tokens in a row"] = f"{ordered[0]} to {ordered[-1]}, median {middle}, 95 % have at most {high}"
        if self.tokens:
            share = 100 * self.supervised / self.tokens
            facts["supervised"] = f"{self.supervised} of {self.tokens} tokens, {share:.1f} %"
        facts["truncated"] = f"{self.truncated} rows"
        return facts


def make_preview(datamodule: InstructionDataModule, split: str = "train", rows: int = 3) -> Preview:
    """Tokenize rows of a split and look at them; nothing is cached.

    Args:
        datamodule: not set up.
        split: train, validation, test or predict.
        rows: how many to show.

    Raises:
        UserError: the source, the tokenizer or the template cannot be used at all.
    """
    count, measured, outcomes = datamodule.inspect(split, MEASURED)
    preview = Preview(split, count, len(measured))
    wanted = max(len(measured) // rows, 1)
    found: dict[str, list[int]] = {}
    special = {*datamodule.tokenizer.all_special_ids, *_special_ids(datamodule.tokenizer)}
    for place, (index, outcome) in enumerate(zip(measured, outcomes, strict=True)):
        if outcome.length:
            preview.lengths.append(outcome.length)
        if outcome.document is None:
            found.setdefault(f"{_LOST[outcome.status]}: {_general(outcome.reason)}", []).append(index)
            continue
        ids, labels = outcome.document.ids, outcome.document.labels
        supervised = sum(label >= 0 for label in labels[1:])
        preview.tokens += len(ids)
        preview.supervised += supervised
        preview.truncated += outcome.status == "truncated"
        if outcome.status == "truncated" and labels[-1] >= 0 and labels[-1] not in special:
            found.setdefault(_CUT, []).append(index)
        if place // wanted >= len(preview.shown) and len(preview.shown) < rows:
            pieces = _pieces(datamodule.tokenizer, ids, labels, special)
            preview.shown.append(Shown(index, pieces, len(ids), supervised, outcome.length))
    problems = [Problem(what, len(places), places[0]) for what, places in found.items()]
    preview.problems = sorted(problems, key=lambda problem: -problem.rows)
    return preview


def print_preview(preview: Preview, console: Any) -> None:
    """Write a preview to a `rich` console: ⟦ ⟧ stand around what is learnt where there are no colours."""
    from rich.text import Text

    plain = console.color_system is None
    for shown in preview.shown:
        console.rule(Text(_title(shown)), align="left", characters="-")
        text = Text()
        for index, (piece, kind) in enumerate(shown.pieces):
            learns = kind != "masked"
            before = index > 0 and shown.pieces[index - 1][1] != "masked"
            after = index + 1 < len(shown.pieces) and shown.pieces[index + 1][1] != "masked"
            opening, closing = "⟦" * (plain and learns and not before), "⟧" * (plain and learns and not after)
            text.append(opening + piece + closing, style=_STYLES[kind])
        console.print(text, soft_wrap=True)
    console.rule(Text(f"data.{preview.split}"), align="left", characters="-")
    legend = Text("masked ", style=_STYLES["masked"]) + Text("supervised", style=_STYLES["learnt"])
    console.print(Text("⟦supervised⟧") if plain else legend + Text(" ") + Text("end of turn", style=_STYLES["end"]))
    for name, value in preview.facts().items():
        console.print(Text(f"{name:<16} {value}"), soft_wrap=True)
    for problem in preview.problems:
        console.print(Text(problem.describe(preview.measured), style="red"), soft_wrap=True)
    if not preview.problems:
        console.print(Text("nothing wrong was found"))


def html_page(preview: Preview) -> str:
    """A preview as one page that needs nothing else."""
    rows = []
    for shown in preview.shown:
        pieces = "".join(f'<span class="{kind}">{escape(piece)}</span>' for piece, kind in shown.pieces)
        rows.append(f"<h2>{escape(_title(shown))}</h2>\n<pre>{pieces}</pre>")
    problems = "".join(
        f'<li class="wrong">{escape(problem.describe(preview.measured))}</li>' for problem in preview.problems
    )
    body = [
        facts_table(preview.facts()),
        f"<ul>{problems or '<li>nothing wrong was found</li>'}</ul>",
        '<p><span class="masked">masked</span> <span class="learnt">supervised</span> '
        '<span class="end">end of turn</span></p>',
        *rows,
    ]
    return page(f"data.{preview.split}", body)


def run_preview(options: argparse.Namespace, rest: Sequence[str]) -> Preview:
    """The command.

    Args:
        options: `rows`, `split` and `html`.
        rest: the configuration's flags, as `fit` takes them.

    Raises:
        UserError: a flag, or what `make_preview` refuses.
    """
    if options.rows < 1:
        raise UserError("--rows", f"expected at least 1, got {options.rows}")
    if options.html is not None and not options.html.parent.is_dir():
        raise UserError("--html", f"expected a file in a folder that exists, got {str(options.html)!r}")
    from rich.console import Console

    from lit_probsft.cli.parts import data_of

    preview = make_preview(data_of(rest), options.split, options.rows)
    print_preview(preview, Console(highlight=False))
    if options.html is not None:
        write_page(options.html, html_page(preview), "--html")
        print(f"{options.html}: the same as a page")
    if not preview.tokens:
        raise UserError(f"data.{options.split}", "expected at least one row that can be used, got none of those above")
    return preview


def _pieces(tokenizer: Any, ids: list[int], labels: list[int], special: set[int]) -> list[tuple[str, str]]:
    """The text in stretches of one kind. A stretch is decoded as a whole, as one character may have several tokens."""
    kinds = []
    for place, label in enumerate(labels):
        learnt = label >= 0
        ends = learnt and label in special and (place + 1 == len(labels) or labels[place + 1] < 0)
        kinds.append("end" if ends else "learnt" if learnt else "masked")
    pieces, start = [], 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or kinds[place] != kinds[start]:
            text = tokenizer.decode(ids[start:place], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            pieces.append((visible(text), kinds[start]))
            start = place
    return pieces


def _special_ids(tokenizer: Any) -> set[int]:
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def _title(shown: Shown) -> str:
    share = 100 * shown.supervised / max(shown.tokens, 1)
    cut = f" of {shown.length}, the rest is cut off" if shown.tokens < shown.length else ""
    return f"row {shown.row}: {shown.tokens} tokens{cut}, {shown.supervised} supervised ({share:.0f} %)"


def _general(reason: str) -> str:
    """A reason without the numbers of its tokens, so that equal ones are counted together; its first row stays out."""
    first = re.sub(r" \(row \d+ of [\w.]+, counted from 0\)", "", reason)
    first = re.sub(r"\b\d+ tokens, at most", "too many tokens, at most", first)
    return re.sub(r"tokens, got \d+", "tokens, got more", first)
