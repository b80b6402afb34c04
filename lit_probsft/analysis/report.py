"""The page about a run, made from the files in its folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_probsft.analysis import charts
from lit_probsft.analysis.curves import draw_curves, read_metrics
from lit_probsft.analysis.page import escape, facts_table, figure, format_value, missing, page, table
from lit_probsft.analysis.plotting import chart_style
from lit_probsft.analysis.tokens import Moved, Tokens
from lit_probsft.errors import UserError, first_line
from lit_probsft.run.folder import RunFolder
from lit_probsft.storage.atomic import read_json

NO_TOKENS = "tokens.npz. fit writes it if there is a validation set."
NOT_BEFORE = "p before training. The sanity check measures it (trainer.num_sanity_val_steps: -1, the default)."
NOT_AFTER = "p after training. There was no validation after the first step."
NOT_OF_P = "the weight curve. The objective's weight depends on more than p."
NO_CAPABILITY = "capability.json. python -m lit_probsft capability writes it."
NO_OTHER_SETS = "other sets, which show what training cost. Name them in data.watch."


def make_report(run: RunFolder, grades: Iterable[str] = ()) -> str:
    """The page about a run. It names what the run has not measured.

    Args:
        run: its folder.
        grades: the section about graded answers, as pieces of HTML.

    Raises:
        UserError: the folder is not the folder of a run, or a file in it is damaged.
    """
    record = read_json(run.record)
    if record is None:
        raise UserError("RUN", f"expected the folder of a run, {str(run.path)!r} has no run.json")
    tokens = Tokens(run.tokens) if run.tokens.exists() else None
    with chart_style(), _content_errors(run.record):
        body = [
            _summary(record),
            "<h2>Change by validation set</h2>",
            *_set_changes(record),
            *grades,
            "<h2>What the model knew before training</h2>",
            *_read(run.capability, _capability, run),
            "<h2>Where the objective pulls</h2>",
            *_read(run.tokens, _gradient_weight, tokens),
            "<h2>What training changed</h2>",
            *_read(run.tokens, _token_changes, tokens, record),
            "<h2>Tokens that changed most</h2>",
            *_read(run.tokens, _most_changed, tokens),
            "<h2>Metrics</h2>",
            *_read(run.metrics, _curves, run.metrics),
            "<h2>The run's record</h2>",
            facts_table({name: value for name, value in record.items() if name not in ("forgetting", "tokens")}),
        ]
    return page(f"Run {run.path.name}", body)


@contextlib.contextmanager
def _content_errors(path: Path) -> Iterator[None]:
    """Turn an error from values of another kind or size into a `UserError` about the file that holds them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            str(path), f"expected a file of a run; its content cannot be read: {first_line(error)}"
        ) from error


def _read(path: Path, section: Callable[..., list[str]], *content: Any) -> list[str]:
    with _content_errors(path):
        return section(*content)


def _summary(record: Mapping[str, Any]) -> str:
    data = {
        f"data.{split}": f"{format_value(facts.get('kept'))} documents, "
        f"{format_value(facts.get('supervised_tokens'))} supervised tokens"
        for split, facts in (record.get("data") or {}).items()
        if isinstance(facts, dict) and "kept" in facts
    }
    names = ("status", "error", "started", "seconds", "strategy")
    return facts_table(
        {
            "objective": _objective(record.get("objective") or {}),
            "model": (record.get("model") or {}).get("name"),
            **data,
            **{name: record[name] for name in names if name in record},
            "optimizer steps": (record.get("counts") or {}).get("optimizer_steps"),
        }
    )


def _objective(config: Mapping[str, Any]) -> str:
    """An objective's configuration as a Python expression."""
    if "class_path" not in config:
        return "unknown"
    arguments = ", ".join(
        f"{name}={_objective(value) if isinstance(value, dict) and 'class_path' in value else format_value(value)}"
        for name, value in (config.get("init_args") or {}).items()
    )
    lean = f", lean {format_value(config['lean'])}" if config.get("lean") is not None else ""
    return f"{str(config['class_path']).rpartition('.')[2]}({arguments}){lean}"


def _set_changes(record: Mapping[str, Any]) -> list[str]:
    changes = record.get("forgetting") or {}
    if not changes:
        return [missing("metrics before and after. " + NOT_BEFORE)]
    rows = []
    for name, metrics in changes.items():
        cells = [f"<b>{escape(name)}</b>" if name == "validation" else escape(name)]
        for metric, better in (("nll", -1), ("mean_p", 1), ("ece", -1)):
            cells.append(_change_cell(metrics[metric], better) if metric in metrics else "")
        rows.append(cells)
    body = [table(("set", "NLL (nats)", "mean p", "ECE"), rows)]
    body.append(figure(charts.nll_changes(changes), "Change of the NLL by set. Below 0 the model has improved."))
    if set(changes) == {"validation"}:
        body.append(missing(NO_OTHER_SETS))
    return body


def _change_cell(change: Mapping[str, float | None], better: int) -> str:
    """Values before and after, and their difference in the color of its sign; `better` is the sign of improvement."""
    initial, final, difference = (change.get(name) for name in ("initial", "final", "difference"))
    if initial is None or final is None or difference is None:
        return "unknown"
    kind = "gain" if difference * better > 0 else "loss" if difference else ""
    return f'{initial:.4g} → {final:.4g} <span class="number {kind}">({difference:+.3g})</span>'


def _capability(run: RunFolder) -> list[str]:
    found = read_json(run.path / "capability.json")
    if found is None:
        return [missing(NO_CAPABILITY)]
    body = [f"<p>{escape(text)}</p>" for text in _texts(found.pop("advice", None))]
    if isinstance(mean := found.get("mean_prob"), int | float):
        caption = "Mean p of the training tokens before training, with its 95% interval, and the three levels."
        body.append(figure(charts.capability_scale(mean, found.get("interval"), found.get("by_source")), caption))
    picture = run.path / "capability.png"
    if picture.exists():
        body.append(figure(charts.embedded_png(picture), "The picture that capability has drawn.", wide=True))
    body += _contradicted_rows(found.get("noise"))
    found.pop("permilles", None)  # 999 numbers, which the picture shows
    tables = {name: text for name, value in found.items() if (text := _table_of(value))}
    body.append(facts_table({name: value for name, value in found.items() if name not in tables}))
    return body + [f"<h3>{escape(name)}</h3>{text}" for name, text in tables.items()]


def _contradicted_rows(noise: Any) -> list[str]:
    """The rows that the model contradicts most, and takes them out of `noise`."""
    rows = noise.pop("rows", None) if isinstance(noise, dict) else None
    if not isinstance(rows, list) or not rows:
        return []
    names = ("row", "source", "tokens", "mean_prob", "confidence", "contradicted")
    heads = [name for name in names if any(name in row for row in rows)]
    cells = []
    for row in rows:
        before, label, model = (escape(str(row.get(k, "")).replace("\n", "↵")) for k in ("before", "label", "model"))
        text = f'<span class="text">{before}<b class="loss">{label}</b> model: <b>{model or "∅"}</b></span>'
        cells.append([*(escape(format_value(row.get(name))) for name in heads), text])
    intro = (
        "The model firmly expects other tokens in these rows: either their labels are wrong or the model is. The text "
        "shows the label from the first such token on, and the token that the model expects there. "
        "capability_examples.csv has all rows in this order."
    )
    title = "<h3>Rows that the model contradicts most</h3>"
    return [title, f"<p>{intro}</p>", table([*heads, "label and model"], cells, "wide")]


def _texts(advice: Any) -> list[str]:
    """All texts in nested lists and dictionaries."""
    if isinstance(advice, Mapping):
        return [text for value in advice.values() for text in _texts(value)]
    if isinstance(advice, list):
        return [text for value in advice for text in _texts(value)]
    return [] if advice is None else [format_value(advice)]


def _table_of(value: Any) -> str:
    """A list or dictionary of dictionaries as a table; empty for anything else."""
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


def _gradient_weight(tokens: Tokens | None) -> list[str]:
    if tokens is None:
        return [missing(NO_TOKENS)]
    if "weight_after" not in tokens.arrays:
        return [missing(NOT_OF_P)]
    body = [figure(charts.weight_curve(tokens), "The objective's weight W(p): its pull on the logit of the target.")]
    if any(tokens.measured(when) for when in ("before", "after")):
        caption = "Gradient mass: the sum of W by p of the target, per token. Training works where it is high."
        body.append(figure(charts.gradient_mass(tokens), caption))
    return body


def _token_changes(tokens: Tokens | None, record: Mapping[str, Any]) -> list[str]:
    if tokens is None:
        return [missing(NO_TOKENS)]
    facts = record.get("tokens") or {}
    followed, supervised, step = (format_value(facts.get(name)) for name in ("followed", "supervised", "step"))
    intro = f"{followed} of {supervised} supervised validation tokens, before training and after step {step}."
    body = [f"<p>{intro}</p>", figure(charts.histogram(tokens), "Share of tokens by p of the target.")]
    body += [
        missing(text) for when, text in (("before", NOT_BEFORE), ("after", NOT_AFTER)) if not tokens.measured(when)
    ]
    if tokens.both.any():
        change = tokens.change()
        caption = "Change of log p by p before training. Bars are means, lines span the middle half of the tokens."
        body.append(figure(charts.change_by_bin(change), caption))
        caption = "Mean p after training over mean p before, by bin of p before."
        body.append(figure(charts.before_after(change), caption))
    if any(tokens.calibration(when) is not None for when in ("before", "after")):
        caption = "Accuracy of the top-1 token by its p. Below the diagonal the model is overconfident."
        body.append(figure(charts.reliability(tokens), caption))
    return body


def _most_changed(tokens: Tokens | None) -> list[str]:
    if tokens is None:
        return [missing(NO_TOKENS)]
    if not tokens.both.any():
        return [missing("changes of tokens, which need p before and after training.")]
    moved = tokens.moved()
    body = ["<p>The followed tokens with the largest change of log p, each in its context.</p>"]
    for title, kind, chosen in (
        ("Increases", "gain", [token for token in moved if token.after > token.before]),
        ("Decreases", "loss", [token for token in moved if token.after < token.before]),
    ):
        rows = [_token_cells(token, kind) for token in chosen]
        heads = ("row", "p before", "p after", "nats", "text")
        body.append(f"<h3>{title}</h3>" + (table(heads, rows, "wide") if rows else "<p>None.</p>"))
    return body


def _token_cells(token: Moved, kind: str) -> list[str]:
    # One line per token: line breaks in the text become arrows.
    before, word, after = (escape(text.replace("\n", "↵")) for text in token.text)
    return [
        format_value(token.row),
        *(f'<span class="number">{math.exp(value):.3g}</span>' for value in (token.before, token.after)),
        f'<span class="number {kind}">{token.after - token.before:+.2f}</span>',
        f'<span class="text">{before}<b class="{kind}">{word or "∅"}</b>{after}</span>',
    ]


def _curves(path: Path) -> list[str]:
    if not path.exists():
        return [missing("metrics.csv.")]
    drawn = draw_curves(read_metrics(path))
    return [figure(svg, caption) for svg, caption in drawn] or [missing("rows in metrics.csv.")]
