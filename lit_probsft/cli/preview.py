"""`preview --config C`: shows a few tokenized rows with their masks, and the problems in the data; loads no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lit_probsft.analysis.page import escape, facts_table, page, visible, write_page
from lit_probsft.cli.arguments import CommandParser, path_argument
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from lit_probsft.data import InstructionDataModule
    from lit_probsft.data.batches.prepare import Counts
    from lit_probsft.data.batches.row_tokenizer import Outcome

MEASURED = 2000
"""The most rows that are tokenized for the counts."""

_SHOWN_PROBLEMS = 10
"""The most kinds of problems that are listed."""

_UNUSED = {
    "dropped": "dropped",
    "skipped": "cannot be used; fit stops here unless `data.on_bad_row: skip` is set",
}
_TRUNCATED = "data.max_length cuts off the end of the answer, so the model does not learn to stop there"
_STYLES = {"masked": "dim", "supervised": "bold green", "end": "black on green"}


@dataclass(frozen=True)
class ShownDocument:
    """A row as text, or one of the documents that it is split into.

    Attributes:
        row: index of the row in the source.
        part: ` (document 1 of 3)`; empty unless the row is split.
        pieces: (text, kind) of each stretch; the kind is `masked`, `supervised` or `end`, the end of a turn.
        tokens: after truncation.
        supervised: supervised tokens, counted after the shift.
        length: tokens before truncation.
    """

    row: int
    part: str
    pieces: list[tuple[str, str]]
    tokens: int
    supervised: int
    length: int


@dataclass(frozen=True)
class Problem:
    """A problem that `rows` of the measured rows have, described for the `first` of them."""

    text: str
    first: int
    rows: int

    def describe(self, measured: int) -> str:
        """One line about the problem."""
        return f"{self.rows} of {measured} rows, the first is row {self.first}: {visible(self.text)}"


@dataclass
class Preview:
    """Some rows of a split, and statistics over the measured ones.

    Attributes:
        split: its name.
        rows: number of rows in the split; None in a stream, whose length is unknown.
        measured: number of rows that were tokenized, evenly spaced over the split; the first rows of a stream.
        counts: what happened to the measured rows.
        lengths: tokens of each document of the measured rows before truncation, skipped rows left out.
        tokens: tokens of the documents that are kept.
        supervised: supervised tokens of the documents that are kept.
        rewritten: number of measured rows with an earlier turn that is supervised as the template rewrites it.
        prompts: how answers are asked for where that has to be said, and the number of measured rows of each.
        problems: the most common first.
        shown: the documents of the rows to show.
    """

    split: str
    rows: int | None
    measured: int
    counts: Counts
    lengths: list[int] = field(default_factory=list)
    tokens: int = 0
    supervised: int = 0
    rewritten: int = 0
    prompts: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    shown: list[ShownDocument] = field(default_factory=list)

    def facts(self) -> dict[str, str]:
        """The statistics in words, by name."""
        counts = self.counts
        if self.rows is None:
            facts = {"rows": f"the first {self.measured} of a stream"}
        else:
            facts = {"rows": f"{self.rows}{f', {self.measured} measured' * (self.measured < self.rows)}"}
        if self.lengths:
            ordered = sorted(self.lengths)
            median, high = ordered[len(ordered) // 2], ordered[math.ceil(0.95 * len(ordered)) - 1]
            unit = "document" if counts.split_rows else "row"
            facts[f"tokens per {unit}"] = f"{ordered[0]} to {ordered[-1]}, median {median}, 95 % have at most {high}"
        if self.tokens:
            share = 100 * self.supervised / self.tokens
            facts["supervised"] = f"{self.supervised} of {self.tokens} tokens, {share:.1f} %"
        facts["truncated"] = f"{counts.truncated} {'documents' if counts.split_rows else 'rows'}"
        if counts.split_rows:
            facts["split"] = (
                f"{counts.split_rows} of {self.measured} rows into {counts.split_documents} documents, because the "
                "chat template rewrites earlier turns"
            )
        if self.rewritten:
            facts["history"] = (
                f"{self.rewritten} of {self.measured} rows have an earlier turn that the chat template writes "
                "differently once later turns follow, and it is supervised in that form; "
                "`data.rewritten_history: split` supervises it as the model has to write it"
            )
        if self.prompts:
            facts["prompts"] = "; ".join(
                f"{rows} of {self.measured} rows: {said}" for said, rows in self.prompts.most_common()
            )
        if counts.with_control_tokens:
            rows = f"{counts.with_control_tokens} of {self.measured} rows"
            facts["control tokens"] = f"{rows} contain control tokens in their text, written as ordinary text"
        if counts.unused:
            facts["not used"] = visible(", ".join(counts.unused))
        return facts

    def describe_problems(self) -> list[str]:
        """One line for each of the most common problems, and one for the rest."""
        lines = [problem.describe(self.measured) for problem in self.problems[:_SHOWN_PROBLEMS]]
        if more := len(self.problems) - len(lines):
            lines.append(f"and {more} other problems, each in at most {self.problems[_SHOWN_PROBLEMS].rows} rows")
        return lines


def run(args: Sequence[str]) -> Preview:
    """Print a preview, and write it to a page with `--html`.

    Raises:
        UserError: for a wrong flag, for data that cannot be read, or if no row can be used.
    """
    parser = CommandParser(
        prog="python -m lit_probsft preview",
        description="Show tokenized rows with their masks, and the problems in the data. Loads no model.",
        epilog="--config FILE and all other flags are those of fit. See fit --help, or --help model.lora.",
    )
    parser.add_argument("--rows", metavar="N", type=int, default=3, help="number of rows to show (default: 3)")
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test", "predict"),
        default="train",
        help="split to show (default: train)",
    )
    parser.add_argument("--html", metavar="FILE", type=path_argument, help="also write the preview to an HTML page")
    options, flags = parser.parse_known_args(args)
    if options.rows < 1:
        raise UserError("--rows", f"expected at least 1, got {options.rows}")
    if options.html is not None and not options.html.parent.is_dir():
        raise UserError("--html", f"expected a file in an existing folder, got {str(options.html)!r}")
    from rich.console import Console

    from lit_probsft.cli.parts import data_of

    preview = make_preview(data_of(flags), options.split, options.rows)
    print_preview(preview, Console(highlight=False))
    if options.html is not None:
        write_page(options.html, html_page(preview), "--html")
        print(f"{options.html}: the preview as a page")
    if not preview.tokens:
        raise UserError(f"data.{options.split}", "expected at least one usable row, all have the problems above")
    return preview


def make_preview(datamodule: InstructionDataModule, split: str = "train", rows: int = 3) -> Preview:
    """Tokenize rows of a split, without the cache, and collect statistics and problems.

    Args:
        datamodule: before `setup`.
        split: train, validation, test or predict.
        rows: number of rows to show.

    Raises:
        UserError: if the source, the tokenizer or the template cannot be used at all.
    """
    from lit_probsft.data.batches.prepare import Counts

    count, measured, row_outcomes = datamodule.inspect(split, MEASURED)
    preview = Preview(split, count, len(measured), Counts())
    spacing = max(len(measured) // rows, 1)
    problems: dict[str, list[tuple[str, int]]] = {}
    special = {*datamodule.tokenizer.all_special_ids, *_special_ids(datamodule.tokenizer)}
    num_shown = 0
    for position, (index, outcomes) in enumerate(zip(measured, row_outcomes, strict=True)):
        preview.counts.add(outcomes)
        preview.rewritten += outcomes[0].rewritten
        preview.prompts.update(filter(None, [outcomes[0].prompt]))
        is_shown = position // spacing >= num_shown and num_shown < rows
        num_shown += is_shown and any(outcome.document is not None for outcome in outcomes)
        found: dict[str, str] = {}  # one problem of each kind, however many documents have it
        for number, outcome in enumerate(outcomes):
            if outcome.length:
                preview.lengths.append(outcome.length)
            if problem := _problem(outcome, special):
                # Reasons that differ only in numbers, such as that of the row, or in the value are one problem.
                found.setdefault(re.sub(r", got .*|\d+", "", problem, flags=re.DOTALL), problem)
            if outcome.document is None:
                continue
            ids, labels = outcome.document.ids, outcome.document.labels
            supervised = sum(label >= 0 for label in labels[1:])
            preview.tokens += len(ids)
            preview.supervised += supervised
            if is_shown:
                part = f" (document {number + 1} of {len(outcomes)})" if len(outcomes) > 1 else ""
                pieces = _pieces(datamodule.tokenizer, ids, labels, special)
                preview.shown.append(ShownDocument(index, part, pieces, len(ids), supervised, outcome.length))
        for kind, problem in found.items():
            problems.setdefault(kind, []).append((problem, index))
    counted = [Problem(*same[0], rows=len(same)) for same in problems.values()]
    preview.problems = sorted(counted, key=lambda problem: -problem.rows)
    return preview


def print_preview(preview: Preview, console: Any) -> None:
    """Print a preview to a `rich` console. Without colours, ⟦ ⟧ mark the supervised text."""
    from rich.text import Text

    plain = console.color_system is None
    for shown in preview.shown:
        console.rule(Text(_title(shown)), align="left", characters="-")
        text = Text()
        kinds = ["masked", *(kind for _, kind in shown.pieces), "masked"]
        for (piece, kind), before, after in zip(shown.pieces, kinds, kinds[2:], strict=False):
            opening = "⟦" * (plain and before == "masked" != kind)
            closing = "⟧" * (plain and after == "masked" != kind)
            text.append(opening + piece + closing, style=_STYLES[kind])
        console.print(text, soft_wrap=True)
    console.rule(Text(f"data.{preview.split}"), align="left", characters="-")
    legend = Text("masked ", style=_STYLES["masked"]) + Text("supervised", style=_STYLES["supervised"])
    console.print(Text("⟦supervised⟧") if plain else legend + Text(" ") + Text("end of turn", style=_STYLES["end"]))
    facts = preview.facts()
    width = max(16, *map(len, facts))
    for name, value in facts.items():
        console.print(Text(f"{name:<{width}} {value}"), soft_wrap=True)
    for problem in preview.describe_problems():
        console.print(Text(problem, style="red"), soft_wrap=True)
    if not preview.problems:
        console.print(Text("no problems found"))


def html_page(preview: Preview) -> str:
    """A preview as a self-contained page."""
    rows = []
    for shown in preview.shown:
        pieces = "".join(f'<span class="{kind}">{escape(piece)}</span>' for piece, kind in shown.pieces)
        rows.append(f"<h2>{escape(_title(shown))}</h2>\n<pre>{pieces}</pre>")
    problems = "".join(f'<li class="wrong">{escape(problem)}</li>' for problem in preview.describe_problems())
    body = [
        facts_table(preview.facts()),
        f"<ul>{problems or '<li>no problems found</li>'}</ul>",
        '<p><span class="masked">masked</span> <span class="supervised">supervised</span> '
        '<span class="end">end of turn</span></p>',
        *rows,
    ]
    return page(f"data.{preview.split}", body)


def _pieces(tokenizer: Any, ids: list[int], labels: list[int], special: set[int]) -> list[tuple[str, str]]:
    """The text in stretches of one kind, each decoded as a whole: a character can span several tokens."""
    kinds = []
    for position, label in enumerate(labels):
        supervised = label >= 0
        ends_turn = label in special and (position + 1 == len(labels) or labels[position + 1] < 0)
        kinds.append("masked" if not supervised else "end" if ends_turn else "supervised")
    pieces, start = [], 0
    for position in range(1, len(ids) + 1):
        if position == len(ids) or kinds[position] != kinds[start]:
            text = tokenizer.decode(ids[start:position], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            pieces.append((visible(text), kinds[start]))
            start = position
    return pieces


def _problem(outcome: Outcome, special: set[int]) -> str | None:
    """Why a document is not used, or not as it should be."""
    if outcome.document is None:
        return f"{_UNUSED[outcome.status]}: {outcome.reason}"
    end = outcome.document.labels[-1]
    if outcome.status == "truncated" and end >= 0 and end not in special:
        return _TRUNCATED
    return None


def _special_ids(tokenizer: Any) -> set[int]:
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def _title(shown: ShownDocument) -> str:
    share = 100 * shown.supervised / max(shown.tokens, 1)
    truncated = f" (truncated from {shown.length})" if shown.tokens < shown.length else ""
    return (
        f"row {shown.row}{shown.part}: {shown.tokens} tokens{truncated}, {shown.supervised} supervised ({share:.0f} %)"
    )
