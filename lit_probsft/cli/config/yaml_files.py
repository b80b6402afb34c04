"""Reads configuration files, so that an error names the file and the line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lit_probsft.cli.config.scalars import read
from lit_probsft.errors import UserError

_YAML_ERRORS = (
    (r"found character '\\t'", "a tab; indent with spaces"),
    (r"mapping values are not allowed", "a colon within a text; put the text in quotes"),
    (r"found unexpected end of stream", "a quote is never closed"),
    (r"expected the node content", "a bracket is never closed, or a value is missing"),
    (r"expected <block end>", "expected the indentation of the lines above"),
    (r"expected ',' or '[}\]]'|did not find expected ',' or '[}\]]'", "a bracket is never closed, or a text with a "
     "colon, bracket or comma is not in quotes"),
    (r"special characters are not allowed", "a character that is not text; is it a YAML file?"),
)  # fmt: skip
"""What PyYAML says, and what is wrong."""


def read_yaml(path: Path, name: str, argument: str) -> Any:
    """The content of a YAML file, with its spelling (see `scalars.read`).

    Args:
        path: the file.
        name: of the file, for errors.
        argument: the flag or option that names it, for errors.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or not valid YAML, or has a key twice.
    """
    if not path.is_file():
        raise UserError(argument, f"expected a file, {name} is a folder")
    try:
        return read(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(argument, f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise UserError(argument, f"expected a YAML file in UTF-8, {name} is not: {byte}") from error
    except yaml.YAMLError as error:
        raise UserError(argument, f"{name}{_line(error)}: not valid YAML: {_reason(error)}") from error


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if "quoted scalar" in str(getattr(error, "context", "")):  # the quote opens there; the problem is at the file's end
        mark = getattr(error, "context_mark", mark)
    return f" line {mark.line + 1}" if mark is not None else ""


def _reason(error: yaml.YAMLError) -> str:
    text = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    return next((plain for pattern, plain in _YAML_ERRORS if re.search(pattern, text)), text.splitlines()[0])


def shown(value: Any) -> str:
    """A value as YAML shows it: texts in quotes."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else repr(value)
