"""`report runs/NAME`: everything that a run has left behind, as one page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_probsft.analysis import charts
from lit_probsft.analysis.chart import chart_style
from lit_probsft.analysis.curves import draw_curves, read_metrics
from lit_probsft.analysis.page import escape, facts_table, figure, format_value, missing, page, table
from lit_probsft.analysis.tokens import Moved, Tokens
from lit_probsft.errors import UserError
from lit_probsft.run.folder import RunFolder

NO_TOKENS = "tokens.npz; fit writes it where there is a validation set that is evaluated during training."
NOT_BEFORE = (
    "p before training; the trainer's sanity check measures it (trainer.num_sanity_val_steps: -1, the default)."
)
NOT_AFTER = "p after training; no validation has followed the first step."
NOT_OF_P = "the objective's weight reads more than p, so that it is no curve over p."
NO_CAPABILITY = "capability.json; python -m lit_probsft capability writes it."
_FACTS = ("status", "error", "started", "seconds", "strategy")


def make_report(run: RunFolder) -> str:
    """The page about a run; what the run has not left behind is said to be missing.

    Raises:
        UserError: the folder is none of a run, or a file in it is damaged.
    """
    record = _read_json(run.record)
    if record is None:
        raise UserError("RUN", f"expected a folder that fit has written to, got {str(run.path)!r} without a run.json")
    tokens = Tokens(run.tokens) if run.tokens.exists() else None
    with chart_style():
        body = [
            _facts(record),
            "<h2>Gained here, lost there</h2>",
            *_forgetting(record),
            "<h2>What the model knew before</h2>",
            *_capability(run),
            "<h2>What the objective works on</h2>",
            *_weight(tokens),
            "<h2>What training did</h2>",
            *_changes(tokens, record),
            "<h2>Tokens that moved most</h2>",
            *_moved(tokens),
            "<h2>The way there</h2>",
            *_curves(run.metrics),
            "<h2>The run's record</h2>",
            facts_table({name: value for name, value in record.items() if name not in ("forgetting", "tokens")}),
        ]
    return page(f"Run {run.path.name}", body)


def _facts(record: Mapping[str, Any]) -> str:
    data = {
        split: f"{format_value(facts.get('kept'))} documents, "
        f"{format_value(facts.get('supervised_tokens'))} supervised tokens"
        for split, facts in (record.get("data") or {}).items()
        if isinstance(facts, dict) and "kept" in facts
    }
    return facts_table(
        {
            "objective": _objective(record.get("objective") or {}),
            "model": (record.get("model") or {}).get("name"),
            **{f"data.{split}": text for split, text in data.items()},
            **{name: record[name] for name in _FACTS if name in record},
            "optimizer steps": (record.get("counts") or {}).get("optimizer_steps"),
        }
    )


def _objective(config: Mapping[str, Any]) -> str:
    """As it would be written in Python."""
    if "class_path" not in config:
        return "unknown"
    arguments = ", ".join(
        f"{name}={_objective(value) if isinstance(value, dict) and 'class_path' in value else format_value(value)}"
        for name, value in (config.get("init_args") or {}).items()
    )
    lean = f", lean {format_value(config['lean'])}" if config.get("lean") is not None else ""
    return f"{str(config['class_path']).rpartition('.')[2]}({arguments}){lean}"


def _forgetting(record: Mapping[str, Any]) -> list[str]:
    changes = record.get("forgetting") or {}
    if not changes:
        return [missing("metrics before and after; " + NOT_BEFORE)]
    rows = []
    for name, metrics in changes.items():
        cells = [f"<b>{escape(name)}</b>" if name == "validation" else escape(name)]
        for metric, good in (("nll", -1), ("mean_p", 1), ("ece", -1)):
            cells.append(_change(metrics[metric], good) if metric in metrics else "")
        rows.append(cells)
    body = [table(("set", "NLL (nats)", "mean p", "ECE"), rows)]
    body.append(figure(charts.nll_changes(changes), "Change of the NLL by set; below 0 the model has learnt."))
    if set(changes) == {"validation"}:
        body.append(missing("other sets, which would show what was lost; data.watch names them."))
    return body


def _change(change: Mapping[str, float | None], good: int) -> str:
    initial, final, difference = (change.get(name) for name in ("initial", "final", "difference"))
    if initial is None or final is None or difference is None:
        return "unknown"
    kind = "gain" if difference * good > 0 else "loss" if difference else ""
    return f'{initial:.4g} → {final:.4g} <span class="number {kind}">({difference:+.3g})</span>'


def _capability(run: RunFolder) -> list[str]:
    found = _read_json(run.path / "capability.json")
    if found is None:
        return [missing(NO_CAPABILITY)]
    body = [f"<p>{escape(line)}</p>" for line in _lines(found.pop("advice", None))]
    if isinstance(mean := found.get("mean_prob"), int | float):
        caption = "Mean p of the training tokens before training, with its interval, on the scale of the three levels."
        body.append(figure(charts.capability_scale(mean, found.get("interval"), found.get("by_source")), caption))
    drawing = run.path / "capability.png"
    if drawing.exists():
        body.append(figure(charts.embedded_png(drawing), "The probe's own picture.", wide=True))
    found.pop("permilles", None)  # 999 numbers, which the picture shows
    tables = {name: value for name, value in found.items() if _rows(value)}
    body.append(facts_table({name: value for name, value in found.items() if name not in tables}))
    return body + [f"<h3>{escape(name)}</h3>{_rows(value)}" for name, value in tables.items()]


def _lines(advice: Any) -> list[str]:
    """Texts, from wherever they stand in it."""
    if isinstance(advice, Mapping):
        return [line for value in advice.values() for line in _lines(value)]
    if isinstance(advice, list):
        return [line for value in advice for line in _lines(value)]
    return [] if advice is None else [format_value(advice)]


def _rows(value: Any) -> str:
    """Facts of several things, as a table; empty where it is something else."""
    named: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, Mapping) else []
    if isinstance(value, list):
        named = [("", part) for part in value]
    if not named or not all(isinstance(facts, Mapping) for _, facts in named):
        return ""
    heads = list(dict.fromkeys(head for _, facts in named for head in facts))
    rows = [
        [str(name), *(format_value(facts[head]) if head in facts else "" for head in heads)] for name, facts in named
    ]
    return table(["", *heads], [list(map(escape, row)) for row in rows])


def _weight(tokens: Tokens | None) -> list[str]:
    if tokens is None:
        return [missing(NO_TOKENS)]
    if "weight_after" not in tokens.arrays:
        return [missing(NOT_OF_P)]
    body = [
        figure(
            charts.weight_curve(tokens),
            "The objective's weight W(p), the pull on the target's logit, over p of the target.",
        )
    ]
    if any(tokens.measured(when) for when in ("before", "after")):
        caption = (
            "Gradient mass: W summed over the tokens of each bin of p, per token. Where it is high, training worked."
        )
        body.append(figure(charts.gradient_mass(tokens), caption))
    return body


def _changes(tokens: Tokens | None, record: Mapping[str, Any]) -> list[str]:
    if tokens is None:
        return [missing(NO_TOKENS)]
    facts = record.get("tokens") or {}
    intro = (
        f"<p>{format_value(facts.get('followed'))} of {format_value(facts.get('supervised'))} supervised tokens of "
        "the validation set, "
        f"before training and after step {format_value(facts.get('step'))}.</p>"
    )
    body = [intro, figure(charts.histogram(tokens), "Share of the tokens by p of the target.")]
    body += [
        missing(text) for when, text in (("before", NOT_BEFORE), ("after", NOT_AFTER)) if not tokens.measured(when)
    ]
    if tokens.both.any():
        change = tokens.change()
        body += [
            figure(
                charts.change_by_bin(change),
                "Change of log p by p before training: mean, and the span of the middle half. Empty bins have no bar.",
            ),
            figure(charts.before_after(change), "Mean p after training against mean p before, by bin of p before."),
        ]
    if any(tokens.calibration(when) is not None for when in ("before", "after")):
        caption = "Share of right top-1 predictions by their p; below the diagonal the model trusts itself too much."
        body.append(figure(charts.reliability(tokens), caption))
    return body


def _moved(tokens: Tokens | None) -> list[str]:
    if tokens is None:
        return [missing(NO_TOKENS)]
    if not tokens.both.any():
        return [missing("values before and after, which tell how far a token has moved.")]
    moved = tokens.moved()
    parts = [("Upwards", "gain", [token for token in moved if token.after > token.before])]
    parts += [("Downwards", "loss", [token for token in moved if token.after < token.before])]
    body = ["<p>By log p, among the tokens above; each with the text around it.</p>"]
    for title, kind, chosen in parts:
        rows = [_shown(token, kind) for token in chosen]
        heads = ("row", "p before", "p after", "nats", "text")
        body.append(f"<h3>{title}</h3>" + (table(heads, rows, "wide") if rows else "<p>None.</p>"))
    return body


def _shown(token: Moved, kind: str) -> list[str]:
    # A line of text to a token, or a few line breaks would fill the page.
    before, word, behind = (escape(text.replace("\n", "↵")) for text in token.text)
    return [
        format_value(token.row),
        *(f'<span class="number">{math.exp(value):.3g}</span>' for value in (token.before, token.after)),
        f'<span class="number {kind}">{token.after - token.before:+.2f}</span>',
        f'<span class="text">{before}<b class="{kind}">{word or "∅"}</b>{behind}</span>',
    ]


def _curves(path: Path) -> list[str]:
    if not path.exists():
        return [missing("metrics.csv.")]
    drawn = draw_curves(read_metrics(path))
    return [figure(svg, caption) for svg, caption in drawn] or [missing("rows in metrics.csv.")]


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"expected JSON, which cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(str(path), f"expected a JSON object, got {type(content).__name__}")
    return content
