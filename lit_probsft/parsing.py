"""jsonargparse's complaints, turned into one message that names the argument, what was expected and what came."""

from __future__ import annotations

import inspect
import re
from abc import ABC
from importlib import import_module
from typing import Any

from lit_probsft.errors import near_matches

_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':")
_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_CLASS_NAME = re.compile(r"Expected a dot import path string: (.*)")
_IMPORT = re.compile(r"(?:Unexpected import error|No module named|Problem importing|.*cannot import).*")
_UNKNOWN_FLAG = re.compile(r"unrecognized arguments?: (.*)|does not accept option '([^']+)'")
_VALUE = re.compile(r"Given value: (.*)")
_MISSING_FILE = re.compile(r"File does not exist: '?([^']*)'?")
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|- Expected a <class 'NoneType'>|Given value type: "
)


def explain(message: str, known_flags: list[str]) -> str:
    """One message from jsonargparse's nested one; what is not recognized is kept, in one line.

    Args:
        message: as jsonargparse gives it to `ArgumentParser.error`.
        known_flags: names to suggest for an unknown flag, `trainer.max_epochs` and so on.
    """
    keys = _KEY.findall(message)
    name = ".".join(keys)
    if match := _UNKNOWN_FLAG.search(message):
        flag = (match[1] or match[2]).split()[0].removeprefix("--").split("=")[0]
        return f"{flag}: there is no such option.{near_matches(flag, known_flags)}"
    if match := _MISSING_FILE.search(message):
        return f"--{name or 'config'}: expected a file, there is none at {match[1]}"
    classes = _CLASS.findall(message)
    if match := _OPTION.search(message):
        option = match[1].split(".")[0]
        owner = _imported(classes[-1]) if classes else None
        accepted = list(inspect.signature(owner).parameters) if owner is not None else []
        of = f" of {classes[-1].rsplit('.', 1)[-1]}" if classes else ""
        return f"{name}.{option}: there is no such option{of}.{near_matches(option, accepted)}"
    if match := _CLASS_NAME.search(message):
        return f"{name}: expected a class (its name or import path), got {match[1].strip()!r}.{_class_hint(match[1])}"
    lines = [line.strip() for line in message.splitlines()]
    useful = [
        line.removeprefix("- ")
        for line in lines
        if line and not (_NOISE.search(line) or _KEY.fullmatch(line) or _CLASS.fullmatch(line) or line.startswith("Given value"))
    ]
    text = "; ".join(dict.fromkeys(line.replace("<class '", "").replace("'>", "") for line in useful))
    value = _VALUE.search(message)
    got = f", got {value[1]}" if value and "Got value" not in text and "NestedArg" not in value[1] else ""
    text = text.replace(". Got value:", ", got").replace("Expected", "expected")
    return f"{name}: {text}{got}" if name else f"{text}{got}"


def _class_hint(name: str) -> str:
    known = {member.__name__ for base in _families() for member in _members(base)}
    return near_matches(name.strip().rsplit(".", 1)[-1], known)


def _families() -> list[type]:
    from lit_probsft.data import Source, TokenizerSource
    from lit_probsft.model import ModelSource
    from lit_probsft.module import ProbSFTModule
    from lit_probsft.objectives import Objective

    return [Objective, Source, TokenizerSource, ModelSource, ProbSFTModule]


def _members(base: type) -> set[type]:
    found = set() if ABC in base.__bases__ or base.__name__.startswith("_") else {base}
    return found.union(*(_members(sub) for sub in base.__subclasses__()))


def _imported(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
