"""jsonargparse's complaints, turned into one message that names the argument, what was expected and what came."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import re
from abc import ABC
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from lit_probsft.errors import UserError, near_matches

_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':")
_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_OPTION_OWNER = re.compile(r"Option '[^']+' is not accepted\. Got value: Namespace\(class_path='([^']+)'")
_GROUP = re.compile(r"Group '([^']+)' does not accept option '([^']+)'")
_WRONG_CLASS = re.compile(r"Import path (\S+) does not correspond to a subclass of (\w+)")
_UNKNOWN_FLAG = re.compile(r"unrecognized arguments?: (\S+)|does not accept option '([^']+)'")
_REQUIRED = re.compile(r"the following arguments are required: (\S+)")
_MISSING_FILE = re.compile(r"File does not exist: '?([^']*)'?")
_CLASS_NAME = re.compile(
    r"Expected a dot import path string: (.*)|(?:module '\S+' has no attribute|No module named) '(\S+)'"
)
_TYPE = re.compile(r"Expected a (?:<class '([^']+)'>|typing\.Literal\[(.*)\])")
_VALUE = re.compile(r"(?:Got value|Given value): (?!NestedArg|\{|Namespace)(.*)|NestedArg\(key='[^']*', val='(.*)'\)")
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value|NoneType"
    r"|Import path .* does not corr"
)

_RENAMED = {"checkpoints.every_n_steps": "checkpoints.save_every"}
"""Options that users may have in their configurations, and what does the same now."""


def explain(message: str, known_flags: list[str]) -> str:
    """One message from jsonargparse's nested one; what is not recognized is kept, in one line.

    Args:
        message: as jsonargparse gives it to `ArgumentParser.error`.
        known_flags: names to suggest for an unknown flag, `trainer.max_epochs` and so on.
    """
    if re.match(r"\S+: the module \S+ cannot be imported: ", message):
        return message  # our own, from `_imported`
    keys = _KEY.findall(message)
    name = ".".join(keys)
    classes = _CLASS.findall(message)
    for old, new in _RENAMED.items():
        group, _, option = old.rpartition(".")
        said = rf"{re.escape(old)}\b|Group '{group}' does not accept option '{option}'"
        if name == old or re.search(said, message):
            return f"{old}: there is no such option any more; it is called {new}"
    if match := _GROUP.search(message):
        group, option = match[1], match[2]
        owner = _imported(classes[-1]) if classes else None
        parameter = inspect.signature(owner).parameters.get(group) if owner is not None else None
        default = parameter.default if parameter is not None else None
        accepted = [field.name for field in dataclasses.fields(default)] if dataclasses.is_dataclass(default) else []
        where = ".".join([*keys, group, option])
        return f"{where}: there is no such option of {group}.{near_matches(option, accepted)}"
    if match := _UNKNOWN_FLAG.search(message):
        flag = (match[1] or match[2]).removeprefix("--").split("=")[0]
        return f"{flag}: there is no such option.{near_matches(flag, known_flags)}"
    if match := _MISSING_FILE.search(message):
        return f"--{name or 'config'}: expected a file, there is none at {match[1]}"
    if match := _REQUIRED.search(message):
        return f"{name}.{match[1]}: required, but not given"
    if match := _OPTION.search(message):
        option = match[1].split(".")[0]
        inner = _OPTION_OWNER.search(message)
        class_path = inner[1] if inner else classes[-1] if classes else ""
        owner = _imported(class_path) if class_path else None
        accepted = list(inspect.signature(owner).parameters) if owner is not None else []
        of = f" of {class_path.rsplit('.', 1)[-1]}" if class_path else ""
        return f"{name}.{option}: there is no such option{of}.{near_matches(option, accepted)}"
    value = _VALUE.search(message)
    given = (value[1] or value[2]).split(". Got value")[0].strip() if value else ""
    got = f", got {given!r}" if value else ""
    types = [t for t in _TYPE.findall(message) if t[0] != "NoneType"]
    plain = [kind or f"one of {choices}" for kind, choices in types if kind not in ("str",)]
    if plain:
        return f"{name}: expected {' or '.join(dict.fromkeys(plain))}{got}"
    if match := _WRONG_CLASS.search(message):
        return f"{name}: expected a class derived from {match[2]}, {match[1]} is none"
    if "Not a valid subclass of" in message and (value is None or given.startswith(("[", "{")) or not given):
        return f"{name}: expected a class (its name or import path) or a mapping of its arguments{got}"
    if match := _CLASS_NAME.search(message):
        wanted = (given or match[1] or match[2]).strip()
        hint = _class_hint(wanted, "objective" in name) if name != "data" else ""
        return f"{name}: expected a class (its name or import path), got {wanted!r}.{hint}"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    useful = [
        line for line in lines if line and not (_NOISE.search(line) or _KEY.fullmatch(line) or _CLASS.fullmatch(line))
    ]
    return f"{name}: {'; '.join(dict.fromkeys(useful))}" if name else "; ".join(dict.fromkeys(useful))


_NAMES_AN_OBJECTIVE = re.compile(r"--model\.(init_args\.)?objective(\.(init_args\.)?base)*")


@contextlib.contextmanager
def values_as_typed() -> Iterator[None]:
    """Within this block a flag's value reaches the option that it names as it was typed.

    On the way to an option of a class within a class (`--data.train.prompt`) jsonargparse reads the value as YAML at
    each level, and hands down Python's spelling of what that gave: `null` arrived as the text "None", and a prompt
    `Question: {question}` as a mapping, which was refused.
    """
    from jsonargparse import _typehints  # there is no public way

    read, nested = getattr(_typehints, "parse_value_or_config", None), getattr(_typehints, "NestedArg", None)
    if read is None or nested is None:  # another version of the library, which may not need it
        yield
        return

    def read_at_its_place(value: Any, *args: Any, **options: Any) -> Any:
        return (value, None) if isinstance(value, nested) else read(value, *args, **options)

    _typehints.parse_value_or_config = read_at_its_place
    try:
        yield
    finally:
        _typehints.parse_value_or_config = read


def with_own_defaults(args: list[str]) -> list[str]:
    """Each `--model.objective NAME` followed by the defaults of that class, so that they win over a config's arguments.

    Names that are not an objective's are left for the parser to refuse. Arguments of the objective that are given
    before its name come after it.
    """
    args = _named_first(args)
    out: list[str] = []
    pending: str | None = None
    for arg in args:
        flag, equals, value = arg.partition("=")
        if pending is None and _NAMES_AN_OBJECTIVE.fullmatch(flag):
            if not equals:
                pending = flag
                out.append(arg)
                continue
            out += [arg, *_default_flags(flag, value)]
        elif pending is not None:
            out += [arg, *_default_flags(pending, arg)]
            pending = None
        else:
            out.append(arg)
    return out


def _named_first(args: list[str]) -> list[str]:
    units: list[list[str]] = []
    for arg in args:
        if not units or arg.startswith("--") or arg == "-c":
            units.append([])
        units[-1].append(arg)
    flags = [unit[0].partition("=")[0] for unit in units]
    first = next((i for i, flag in enumerate(flags) if re.fullmatch(r"--model\.(init_args\.)?objective", flag)), None)
    if first is not None:
        early = [i for i in range(first) if flags[i].startswith(f"{flags[first]}.")]
        rest = [i for i in range(len(units)) if i not in early]
        place = rest.index(first) + 1
        units = [units[i] for i in [*rest[:place], *early, *rest[place:]]]
    return [arg for unit in units for arg in unit]


def _default_flags(flag: str, name: str) -> list[str]:
    from lit_probsft.objectives import Objective

    family = {member.__name__: member for member in _members(Objective)}
    kind: Any = family.get(name) or _imported(name)
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        return []
    if not hasattr(kind, "__dataclass_fields__"):
        raise UserError(
            f"{flag.removeprefix('--')}: expected a class decorated with @dataclass(frozen=True), {name} is not"
        )
    flags = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # it is a dataclass, as just seen
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if field.init and value is not dataclasses.MISSING:
            plain = value.as_config() if isinstance(value, Objective) else value
            flags.append(f"{flag}.{field.name}={plain if isinstance(plain, str) else json.dumps(plain)}")
    return flags


def _class_hint(name: str, objectives_only: bool) -> str:
    import torch

    from lit_probsft.objectives import Objective

    families = [Objective] if objectives_only else _families()
    known = {member.__name__ for base in families for member in _members(base)}
    # The hint is a name that works as it is typed: our members are known by their names, torch's by their import paths.
    optimizers = {f"torch.optim.{n}" for n, v in vars(torch.optim).items() if isinstance(v, type) and n != "Optimizer"}
    return near_matches(name, known if objectives_only else known | optimizers)


def _families() -> list[type]:
    from lit_probsft.data import Source, TokenizerSource
    from lit_probsft.model import ModelSource
    from lit_probsft.module import ProbSFTModule
    from lit_probsft.objectives import Objective

    return [Objective, Source, TokenizerSource, ModelSource, ProbSFTModule]


def _members(base: type) -> set[type]:
    found: set[type] = set() if ABC in base.__bases__ or base.__name__.startswith("_") else {base}
    member: type
    for member in base.__subclasses__():
        found |= _members(member)
    return found


def _imported(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (AttributeError, ValueError):
        return None
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            return None
        raise UserError(f"{class_path}: the module {module} cannot be imported: {error}") from error
    except Exception as error:  # whatever a user's module does when it is imported
        reason = " ".join(str(error).split())
        raise UserError(
            f"{class_path}: the module {module} cannot be imported: {type(error).__name__}: {reason}"
        ) from error
