"""Reads configuration files before the parser does, so that an error names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_probsft.errors import UserError, near_matches

_FREE_TEXT = {"path", "name_or_path", "model_name_or_path", "prompt", "response", "system", "chat_template"}
"""Options whose value may end in .yaml without being the name of a part."""

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


def check_config_files(args: Sequence[str], known: Sequence[str]) -> None:
    """Refuse what the parser would accept or ignore: a key given twice, an unknown key without a value.

    Files that do not exist are left for the parser.

    Args:
        args: the flags as they were typed.
        known: the keys allowed at the top of a file.

    Raises:
        UserError: names the file, and the line if there is one.
    """
    for index, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        value = value if equals else args[index + 1] if index + 1 < len(args) else ""
        if flag in ("--config", "-c") and value and Path(value).expanduser().exists():
            _check_config(value, known)
        elif flag.startswith(("--model", "--data", "--trainer")):
            group, _, option = flag.removeprefix("--").rpartition(".")
            _read_parts({option: value}, group, Path())


def read_yaml(path: Path, name: str, argument: str) -> Any:
    """The content of a YAML file.

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
        return yaml.load(path.read_bytes().decode("utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(argument, f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise UserError(argument, f"expected a YAML file in UTF-8, {name} is not: {byte}") from error
    except yaml.YAMLError as error:
        raise UserError(argument, f"{name}{_line(error)}: not valid YAML: {_reason(error)}") from error


def _check_config(name: str, known: Sequence[str]) -> None:
    path = Path(name).expanduser()
    content = read_yaml(path, name, "--config")
    if not isinstance(content, dict):
        got = "an empty file" if content is None else _shown(content)
        raise UserError("--config", f"expected a mapping with model, data and trainer in {name}, got {got}")
    for key, value in content.items():
        if key not in known and not value:  # the parser would ignore an unknown key without a value
            hint = near_matches(str(key), known)
            raise UserError(str(key), f"no such option{f'.{hint}' if hint else ''}")
    _read_parts(content, "", path.parent)


def _read_parts(value: Any, place: str, folder: Path, depth: int = 0) -> None:
    """Read the files that an option's value names, and recursively the files named in them."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and depth < 8:
        path = folder / Path(value).expanduser()
        if path.exists():
            _read_parts(read_yaml(path, str(path), place), place, path.parent, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _read_parts(inner, f"{place}[{index}]", folder, depth)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _FREE_TEXT:
                _read_parts(inner, place if key == "init_args" else f"{place}.{key}".strip("."), folder, depth)


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if "quoted scalar" in str(getattr(error, "context", "")):  # the quote opens there; the problem is at the file's end
        mark = getattr(error, "context_mark", mark)
    return f" line {mark.line + 1}" if mark is not None else ""


def _reason(error: yaml.YAMLError) -> str:
    text = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    return next((plain for pattern, plain in _YAML_ERRORS if re.search(pattern, text)), text.splitlines()[0])


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return (
        f"the list {value}" if isinstance(value, list) else f"the text {value!r}" if isinstance(value, str) else value
    )


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys; PyYAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in seen:
                    problem = f"duplicate key `{key.value}`, first used in line {seen[key.value]}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen[key.value] = line
        return super().construct_mapping(node, deep)
