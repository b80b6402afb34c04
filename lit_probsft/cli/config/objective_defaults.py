"""Start an objective that the command line names from its own defaults."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from lit_probsft.cli.config.hints import members
from lit_probsft.cli.config.imports import import_class
from lit_probsft.errors import UserError
from lit_probsft.objectives import Objective

_OBJECTIVE = re.compile(r"--model\.(init_args\.)?objective")
_OBJECTIVE_OR_BASE = re.compile(_OBJECTIVE.pattern + r"(\.(init_args\.)?base)*")


def with_own_defaults(args: list[str]) -> list[str]:
    """Insert the defaults of a class after each `--model.objective NAME`, so that they win over a file's arguments.

    jsonargparse keeps arguments of the same name when the class changes: `alpha: 10` of a Power in the file would
    become the alpha of the class named on the command line. Names that are not an objective's are left as they are.
    Arguments of the objective that precede its name are moved after it.

    Raises:
        UserError: the class is no dataclass, or its module cannot be imported.
    """
    out: list[str] = []
    flag = ""
    for arg in named_first(args):
        out.append(arg)
        if flag:
            out += _default_flags(flag, arg)
            flag = ""
            continue
        name, equals, value = arg.partition("=")
        if _OBJECTIVE_OR_BASE.fullmatch(name):
            if equals:
                out += _default_flags(name, value)
            else:
                flag = name
    return out


def named_first(args: list[str]) -> list[str]:
    """The same flags, with `--model.objective NAME` before the arguments of the objective."""
    units: list[list[str]] = []  # a flag with its value
    for arg in args:
        if not units or arg.startswith("--") or arg == "-c":
            units.append([])
        units[-1].append(arg)
    flags = [unit[0].partition("=")[0] for unit in units]
    first = next((i for i, flag in enumerate(flags) if _OBJECTIVE.fullmatch(flag)), None)
    if first is not None:
        early = [i for i in range(first) if flags[i].startswith(f"{flags[first]}.")]
        rest = [i for i in range(len(units)) if i not in early]
        place = rest.index(first) + 1
        units = [units[i] for i in [*rest[:place], *early, *rest[place:]]]
    return [arg for unit in units for arg in unit]


def _default_flags(flag: str, name: str) -> list[str]:
    family = {member.__name__: member for member in members(Objective)}
    objective: Any = family.get(name) or import_class(name, flag.removeprefix("--"))
    is_objective = isinstance(objective, type) and issubclass(objective, Objective)
    if not is_objective:
        return []
    if not dataclasses.is_dataclass(objective):
        raise UserError(flag.removeprefix("--"), f"{name} must be decorated with @dataclass(frozen=True)")
    flags = []
    for field in dataclasses.fields(objective):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if field.init and value is not dataclasses.MISSING:
            plain = value.as_config() if isinstance(value, Objective) else value
            flags.append(f"{flag}.{field.name}={plain if isinstance(plain, str) else json.dumps(plain)}")
    return flags
