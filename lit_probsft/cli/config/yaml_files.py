"""Configuration files and the parts they name, read once before the parser does, so that what is wrong with a file is
told with its name and line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_probsft.cli.config.explain import imported
from lit_probsft.errors import UserError, near_matches

_FREE_TEXT = {"path", "name_or_path", "model_name_or_path", "prompt", "response", "system", "chat_template"}
"""Options whose text may end in .yaml without being a part."""

_IN_A_CLASS = {"class_path", "init_args", "dict_kwargs"}

_SLIPS = (
    (r"found character '\\t'", "a tab; expected blanks"),
    (r"mapping values are not allowed", "a colon within a text; put the text in quotes"),
    (r"found unexpected end of stream", "a quote that is never closed"),
    (r"expected the node content", "a bracket that is never closed, or nothing where something is expected"),
    (r"expected <block end>", "expected the indentation of the lines above"),
    (r"expected ',' or '[}\]]'|did not find expected ',' or '[}\]]'", "a bracket that is never closed, or a colon, "
     "bracket or comma within a text that is not in quotes"),
    (r"special characters are not allowed", "a character that is no text; is it a YAML file?"),
)  # fmt: skip
"""What the YAML parser says, and what its user has done."""


def check_config_files(args: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a configuration file, or a part that it or a flag names, that cannot be read or says something twice.

    A configuration that is not there is the parser's to refuse.

    Args:
        args: the flags as they were typed.
        known: the names that may stand at the top of a file.

    Raises:
        UserError: with the file's name, and the line where there is one.
    """
    for index, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        value = value if equals else args[index + 1] if index + 1 < len(args) else ""
        if flag in ("--config", "-c") and value and Path(value).expanduser().exists():
            _check_config(value, known)
        elif flag.startswith(("--model", "--data", "--trainer")) and not value.startswith("--"):
            name = flag.removeprefix("--")
            if name.rsplit(".", 1)[-1] not in _FREE_TEXT:
                _check(value, name, Path())


def _check_config(name: str, known: Sequence[str]) -> None:
    path = Path(name).expanduser()
    content = _read(path, name, "--config")
    if not isinstance(content, dict):
        got = "an empty file" if content is None else _shown(content)
        raise UserError("--config", f"expected a mapping with model, data and trainer in {name}, got {got}")
    for key, value in content.items():
        if key not in known and not value:  # what has a value is the parser's to refuse
            raise UserError(key, f"there is no such option.{near_matches(str(key), known)}")
    for part in ("model", "data", "trainer"):
        inner = content.get(part)
        if inner is not None and not isinstance(inner, dict | str):  # a text may name a file of its own
            raise UserError(part, f"expected a mapping in {name}, got {_shown(inner)}")
        _check(inner, part, path.parent)


def _check(value: Any, place: str, folder: Path, depth: int = 0) -> None:
    """What stands at `place`: a part, a class with its arguments, or more of both below."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and depth < 8:
        path = folder / Path(value).expanduser()
        if not path.exists():
            raise UserError(place, f"expected a file, there is none at {path}")
        content = _read(path, str(path), place)
        if not isinstance(content, dict):
            raise UserError(place, f"expected a mapping in {path}, got {_shown(content)}")
        _check(content, place, path.parent, depth + 1)
    elif isinstance(value, Mapping):
        if "class_path" in value:
            _check_class(value, place)
        for key, inner in value.items():
            if key not in _FREE_TEXT:
                _check(inner, place if key == "init_args" else f"{place}.{key}", folder, depth)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check(inner, f"{place}[{index}]", folder, depth)


def _check_class(value: Mapping[Any, Any], place: str) -> None:
    class_path, arguments = value["class_path"], value.get("init_args")
    if not isinstance(class_path, str):
        raise UserError(f"{place}.class_path", f"expected a class (its name or import path), got {_shown(class_path)}")
    if outside := [str(key) for key in value if key not in _IN_A_CLASS]:
        raise UserError(
            place,
            f"expected the arguments of {class_path} below `init_args`, got {', '.join(outside)} beside `class_path`",
        )
    if arguments is not None and not isinstance(arguments, Mapping):
        raise UserError(
            f"{place}.init_args", f"expected a mapping of the arguments of {class_path}, got {_shown(arguments)}"
        )
    imported(class_path, place)


def _read(path: Path, name: str, argument: str) -> Any:
    if not path.is_file():
        raise UserError(argument, f"expected a file, {name} is a folder")
    try:
        return yaml.load(path.read_bytes().decode("utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(argument, f"expected a file that can be read, got {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at place {error.start}"
        raise UserError(argument, f"expected a YAML file in UTF-8, {name} is not: {byte}") from error
    except yaml.YAMLError as error:
        raise UserError(argument, f"{name}{_where(error)}: not valid YAML: {_why(error)}") from error


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if "quoted scalar" in str(getattr(error, "context", "")):  # where it begins; the end is the file's
        mark = getattr(error, "context_mark", mark)
    return f" line {mark.line + 1}" if mark is not None else ""


def _why(error: yaml.YAMLError) -> str:
    said = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    told: Iterator[str] = (ours for theirs, ours in _SLIPS if re.search(theirs, said))
    return next(told, next(iter(said.splitlines()), "it cannot be read"))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"a list, {value}" if isinstance(value, list) else f"a text, {value!r}" if isinstance(value, str) else value


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in seen:
                    again = f"`{key.value}` again, which is given in line {seen[key.value]}"
                    raise yaml.constructor.ConstructorError(None, None, again, key.start_mark)
                seen[key.value] = line
        return super().construct_mapping(node, deep)
