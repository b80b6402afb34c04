"""jsonargparse's complaints, turned into one message that names the argument, what was expected and what came."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from lit_probsft.cli.config.hints import class_hint, class_named, family_at, members, option_hint
from lit_probsft.errors import UserError, near_matches

_KEY = re.compile(r'Parser key "([^"]+)":')
_CLASS = re.compile(r"Problem with given class_path '([^']+)':")
_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_OPTION_OWNER = re.compile(r"Option '[^']+' is not accepted\. Got value: Namespace\(class_path='([^']+)'")
_GROUP = re.compile(r"Group '([^']+)' does not accept option '([^']+)'")
_WRONG_CLASS = re.compile(r"Import path (\S+) does not correspond to a subclass|Expected '(\S+)' to be a subclass of")
_UNKNOWN_FLAG = re.compile(r"unrecognized arguments?: (\S+)|does not accept option '([^']+)'")
_REQUIRED = re.compile(r"the following arguments are required: (\S+)")
_MISSING_FILE = re.compile(r"File does not exist: '?([^']*)'?")
_NO_MAPPING = re.compile(r"Unable to load config '([^']*)'")
_NO_VALUE = re.compile(r"argument (?:\S+/)?--(\S+): expected one argument")
_ABSTRACT = re.compile(r"Expected an instantiatable class, but (\S+) is abstract")
_NO_CLASS = re.compile(
    r"Expected a dot import path string: (.*)"
    r"|Problem with given class_path '([^']+)':\s+(?:module '\S+' has no attribute|No module named) '\S+'"
    r"|Unexpected import path format: (.*)"
    r"|a callable class: (?:module '\S+' has no attribute|No module named) '[^']*'\. Got value: (\S+)"
)
_TYPE = re.compile(r"Expected a (?:<class '([^']+)'>|typing\.Literal\[(.*)\])")
_VALUE = re.compile(r"(?:Got value|Given value): (?!NestedArg|\{|Namespace)(.*)|NestedArg\(key='[^']*', val='(.*)'\)")
_NESTED = re.compile(r"Given value: NestedArg\(key='([^']*)', val=")
_WANTS_A_CLASS = re.compile(r"Not a valid subclass of|expects a function or a callable class")
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:|Given value|NoneType"
    r"|Import path .* does not corr"
)

_RENAMED = {"checkpoints.every_n_steps": "checkpoints.save_every"}
"""Options that users may have in their configurations, and what does the same now."""

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping",
    "collections.abc.Iterable": "a list",
    "list": "a list",
    "tuple": "a list",
}
"""What Python's types are called in a configuration."""

_OUR_CHOICE = {"trainer.precision": "32-true, bf16-mixed or bf16-true"}
"""Options of Lightning that take less here than there."""


def explain(message: str, known_flags: list[str], args: Sequence[str] = ()) -> UserError:
    """One message from jsonargparse's nested one; what is not recognized is kept, in one line.

    Args:
        message: as jsonargparse gives it to `ArgumentParser.error`.
        known_flags: names to suggest for an unknown flag, `trainer.max_epochs` and so on.
        args: the flags as they were typed.
    """
    keys = _KEY.findall(message)
    name = ".".join(keys)
    classes = _CLASS.findall(message)
    for old, new in _RENAMED.items():
        group, _, option = old.rpartition(".")
        said = rf"{re.escape(old)}\b|Group '{group}' does not accept option '{option}'"
        if name == old or re.search(said, message):
            return UserError(old, f"there is no such option any more; it is called {new}")
    if match := _NO_VALUE.search(message):
        return UserError(_without_value(match[1], args), "expected a value, got none")
    if match := _NO_MAPPING.search(message):
        name = ".".join(keys[:-1] if keys[-2:-1] == keys[-1:] else keys)
        return UserError(name, f"expected a mapping, or a YAML file with one, got {_shown(match[1])}")
    if match := _GROUP.search(message):
        return _no_option(
            ".".join([*keys, *match.groups()]), f" of {match[1]}", _fields(classes, match[1]), known_flags
        )
    if match := _UNKNOWN_FLAG.search(message):
        flag = (match[1] or match[2]).split("=")[0]
        if match[1] and not flag.startswith("-"):
            return UserError(flag, "expected a flag, which begins with `--`, got a word that belongs to none")
        place = ".".join([*keys, flag.removeprefix("--")])
        parts = place.split(".")
        accepted = _fields(classes, parts[1]) if keys and len(parts) == 3 else None
        return _no_option(place, "", accepted, known_flags)
    if match := _MISSING_FILE.search(message):
        return UserError(f"--{name or 'config'}", f"expected a file, there is none at {match[1]}")
    if match := _REQUIRED.search(message):
        missing = re.sub(r"^(fit|validate|test|predict)\.", "", match[1])
        return UserError(f"{name}{'.' * bool(name)}{missing}", "expected a value, got none")
    if match := _OPTION.search(message):
        option = match[1].split(".")[0]
        inner = _OPTION_OWNER.search(message)
        class_path = inner[1] if inner else classes[-1] if classes else ""
        owner = imported(class_path) if class_path else None
        of = f" of {class_path.rsplit('.', 1)[-1]}" if class_path else ""
        return _no_option(f"{name}.{option}", of, _parameters(owner), known_flags)
    value = _VALUE.search(message)
    given = "" if value is None else (value[2] if value[1] is None else value[1]).split(". Got value")[0].strip()
    got = "" if value is None else f", got {_shown(given)}"
    if match := _ABSTRACT.search(message):
        lacks = ", ".join(sorted(getattr(imported(match[1], name), "__abstractmethods__", ())))
        return UserError(name, f"expected a class that has all methods, {match[1]} lacks {lacks}")
    if match := _WRONG_CLASS.search(message) if not _types(message) else None:
        return UserError(name, f"expected a class derived from {_family(name)}, {match[1] or match[2]} is none")
    no_class = _NO_CLASS.search(message)
    if no_class and _types(message) and family_at(name) is None:
        no_class = None  # a number that may be a tensor too, say
    if no_class and not re.match(r"\[|\{|true|false|null|\d", given):
        return _not_a_class(name, next(text for text in no_class.groups() if text is not None).strip(), message)
    if plain := _types(message):
        if ours := _OUR_CHOICE.get(name):
            return UserError(name, f"expected {ours}{got}")
        if plain.endswith("or null") and given == "None":
            got = ", got the text 'None'"
        return UserError(name, f"expected {plain}{got}{_near_choices(message, given)}")
    if _WANTS_A_CLASS.search(message) or no_class:
        if no_class and given.startswith("["):
            return _not_a_class(name, next(text for text in no_class.groups() if text is not None).strip(), message)
        return UserError(name, f"expected a class (its name or import path) or a mapping of its arguments{got}")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    useful = [
        line for line in lines if line and not (_NOISE.search(line) or _KEY.fullmatch(line) or _CLASS.fullmatch(line))
    ]
    return UserError(name, f"{'; '.join(dict.fromkeys(useful))}")


def _without_value(flag: str, args: Sequence[str]) -> str:
    """The flag, of those that begin with `flag`, that nothing follows: the parser knows the first of its names only."""
    for arg, following in zip(args, [*args[1:], "--"], strict=True):
        if re.match(rf"--{flag}(\.|$)", arg) and "=" not in arg and following.startswith("--"):
            return arg
    return f"--{flag}"


def _no_option(place: str, of: str, accepted: list[str] | None, known_flags: list[str]) -> UserError:
    return UserError(place, f"there is no such option{of}.{option_hint(place, accepted, known_flags)}")


def _parameters(owner: Any) -> list[str] | None:
    return None if owner is None else list(inspect.signature(owner).parameters)


def _fields(classes: list[str], group: str) -> list[str] | None:
    """Fields of the options that stand together under the name `group` in the innermost class."""
    owner = imported(classes[-1]) if classes else None
    parameter = inspect.signature(owner).parameters.get(group) if owner is not None else None
    default = parameter.default if parameter is not None else None
    return [field.name for field in dataclasses.fields(default)] if dataclasses.is_dataclass(default) else None


def _types(message: str) -> str:
    """What the innermost value may be, in words; empty where it may be a class."""
    innermost = message[max((match.end() for match in _KEY.finditer(message)), default=0) :]
    kinds = [(kind, _choices(choices)) for kind, choices in _TYPE.findall(innermost) if kind in _WORDS or choices]
    several = len(kinds) > 1
    found = [_WORDS.get(kind, choices if several else f"one of {choices}") for kind, choices in kinds]
    if "a number" in found:
        found = [word for word in found if word != "a whole number"]
    if found and re.match(r"\s*(?:-[^\n]*\n\s*-\s*)?Does not validate[^\n]*\n[^\n]*NoneType", innermost):
        found.append("null")
    *others, last = dict.fromkeys(found) or [""]
    return f"{', '.join(others)} or {last}" if others else last


def _choices(literal: str) -> str:
    return literal.replace("'", "")


def _near_choices(message: str, given: str) -> str:
    choices = [choice for _, literal in _TYPE.findall(message) for choice in _choices(literal).split(", ") if choice]
    hint = near_matches(given, choices)
    return f".{hint}" if hint else ""


def _shown(given: str) -> str:
    """A value as YAML shows it: texts in quotes."""
    if given in ("None", "null"):
        return "none"
    if given in ("True", "False"):
        return given.lower()
    return given if re.match(r"[\[{]|[-+]?[\d.]+(e[-+]?\d+)?$", given) else repr(given)


def _family(place: str) -> str:
    family = family_at(place)
    return family.__name__ if family is not None else "what belongs there"


def _not_a_class(place: str, wanted: str, message: str) -> UserError:
    """There is no class of the name `wanted`, or it belongs elsewhere."""
    key = _NESTED.search(message)
    named = re.search(rf"class_path '{re.escape(wanted)}'", message)
    if key and named and "." in wanted and not place.endswith(key[1]):
        return UserError(f"{place}.{key[1]}", f"expected a class with arguments as {place}, got the text {wanted!r}")
    imported(wanted, place)  # says so where it is there but cannot be imported
    if (other := class_named(wanted)) is not None and other not in members(family_at(place) or object):
        return UserError(place, f"expected a class derived from {_family(place)}, {wanted} is none")
    if wanted.lower() in ("true", "false"):
        wanted = wanted.lower()
    return UserError(place, f"expected a class (its name or import path), got {wanted!r}.{class_hint(wanted, place)}")


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

    family = {member.__name__: member for member in members(Objective)}
    kind: Any = family.get(name) or imported(name, flag.removeprefix("--"))
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        return []
    if not hasattr(kind, "__dataclass_fields__"):
        raise UserError(
            flag.removeprefix("--"), f"expected a class decorated with @dataclass(frozen=True), {name} is not"
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


def imported(class_path: str, place: str = "") -> Any:
    """What an import path names; None if there is no such thing.

    Raises:
        UserError: it is there but cannot be imported; the message begins with `place`, or with the path itself.
    """
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (AttributeError, ValueError):
        return None
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            return None
        raise _not_imported(class_path, place, error) from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise _not_imported(class_path, place, error) from error


def _not_imported(class_path: str, place: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    module = class_path.rpartition(".")[0]
    return UserError(place or class_path, f"cannot import {module}, which {class_path} names: {reason}")
