"""Writes HTML pages: self-contained, without scripts, with users' text escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NO_CHARACTER = re.compile("[\ud800-\udfff\ufffe\uffff]")
_CSS = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em;
  color: #1c1c1a; background: #fff; }
h1 { line-height: 1.2; } h2 { margin: 2em 0 .4em; border-bottom: 1px solid #ddd; } h3 { margin: 1.2em 0 .3em; }
p { max-width: 48em; margin: .4em 0 .8em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4; padding: 1em; }
table { border-collapse: collapse; margin: .5em 0 1em; }
td, th { text-align: left; vertical-align: top; padding: .15em 1.5em .15em 0; overflow-wrap: anywhere; }
th { overflow-wrap: normal; } table.wide { width: 100%; } table.wide td { border-top: 1px solid #eee; }
table.wide td:last-child { width: 65%; padding-right: 0; } .number { white-space: nowrap; }
.masked { color: #888; } .supervised { color: #05682f; font-weight: 600; } .end { color: #fff; background: #05682f; }
.wrong { color: #a40000; } .missing { color: #666; font-style: italic; } .gain { color: #05682f; }
.loss { color: #a33b00; }
.text { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; }
.text b { background: #d9eedd; } .text b.loss { background: #fbe3d6; }
figure { display: inline-block; margin: .5em 1em .5em 0; vertical-align: top; width: 440px; max-width: 100%; }
figcaption { font-size: 13px; color: #555; } figure.wide { width: 100%; } img { max-width: 100%; }
svg { max-width: 100%; height: auto; }
@media print { figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def visible(text: str) -> str:
    """Show control characters as symbols, so that text cannot control a terminal, and replace invalid characters."""
    text = _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])) if match[0] < " " else "␡", text)
    return _NO_CHARACTER.sub("�", text)


def escape(text: object) -> str:
    """Anything as escaped text for HTML."""
    return html.escape(visible(str(text)))


def page(title: str, body: Iterable[str]) -> str:
    """A complete page, well-formed XML after its first line.

    Args:
        title: text.
        body: pieces of HTML.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"/>'
        f"<style>{_CSS}</style></head><body>\n<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def facts_table(facts: Mapping[str, Any]) -> str:
    """A table of names and values. The keys of a nested dictionary become `name.key`."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in _flat(facts))
    return f"<table>{rows}</table>" if rows else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table.

    Args:
        heads: text of the head row.
        rows: cells, each a piece of HTML.
        kind: CSS class.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{kind}"><tr>{head}</tr>{body}</table>'


def figure(picture: str, caption: str, *, wide: bool = False) -> str:
    """An SVG or image with a text below it; as wide as the page if `wide`."""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def missing(reason: str) -> str:
    """A sentence in place of content that the run does not have."""
    return f'<p class="missing">Missing: {escape(reason)}</p>'


def format_value(value: Any) -> str:
    """A value as readable text: yes or no, four digits of a float, thousands apart, lists and dictionaries inline."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, float):
        text = f"{value:.4g}"
        return f"{value:.10g}" if text == "1" else text  # .99998 is not 1
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(format_value, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(part)}" for key, part in value.items())
    return str(value)


def write_page(path: Path, text: str, argument: str) -> None:
    """Write a page to a file.

    Raises:
        UserError: the file cannot be written; names `argument`.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(argument, f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", format_value(value)
