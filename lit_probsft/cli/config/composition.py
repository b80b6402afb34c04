"""Composes one configuration of files and flags, in the order in which they take effect.

The result is guided by the type hints of the options: a text is a text, a class named by a flag starts from its own
defaults, and a flag below an option sets an argument of the class that the option has, or that its text implies.
Whether the configuration is valid is for the parser to say.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import lit_probsft.data.rows.choices
import lit_probsft.data.rows.figlet
import lit_probsft.data.rows.mixture  # noqa: F401  classes have short names once they are imported
from lit_probsft.cli.config.command_line import option_name, split_flags
from lit_probsft.cli.config.hints import (
    UNKNOWN,
    FlagGroup,
    Option,
    class_families,
    fields_of,
    item_hint,
    known_options,
    members,
    takes,
)
from lit_probsft.cli.config.implied import ClassSpec, implied_class
from lit_probsft.cli.config.imports import import_class, import_path
from lit_probsft.cli.config.scalars import Scalar, plain
from lit_probsft.cli.config.typed_values import NoValue, ValueReader, flag_value
from lit_probsft.cli.config.yaml_files import read_yaml, shown
from lit_probsft.errors import UserError, near_matches

_SPEC = {"class_path", "init_args", "dict_kwargs"}
_PARTS = ("model", "data")
_NOT_IN_FILES = ("config", "help", "print_config")
_KIND: dict[type, str] = {list: "list", str: "text"}


@dataclasses.dataclass
class Composition:
    """What files and flags say together.

    Attributes:
        content: the configuration as nested mappings, classes as `class_path` and `init_args`.
        files: the configuration files, in order.
        printed: the value of `--print_config`; None if it is not given.
        sound: whether the parser can be trusted to refuse what is wrong (see `ValueReader.wrong`).
    """

    content: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: list[Path] = dataclasses.field(default_factory=list)
    printed: str | None = None
    sound: bool = True


@dataclasses.dataclass(frozen=True)
class _Added:
    """A value of `--trainer.callbacks+`: one more item of a list, or several."""

    value: Any


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Where a value is written: by a flag or in a file of this folder."""

    folder: Path = Path()
    by_flag: bool = False


class Composer:
    """Composes the configurations of one command.

    Args:
        command: fit, validate, and so on, which a file may have as its only key.
        flags: type hints of the parser's flags by name; None for a group of flags.
        switches: the flags that take no value.
    """

    def __init__(self, command: str, flags: Mapping[str, Any], switches: Collection[str]) -> None:
        self._command, self._switches = command, switches
        self._root = FlagGroup()
        for name, hint in flags.items():
            *groups, last = name.split(".")
            inside: Any = self._root
            for group in groups:
                inside = inside.setdefault(group, Option(FlagGroup())).hint if isinstance(inside, FlagGroup) else None
            if isinstance(inside, FlagGroup):  # `model.help` is no option of the model
                inside[last] = Option(FlagGroup() if hint is None else hint, None)

    def compose(self, words: Sequence[str]) -> Composition:
        """What the command line says.

        Raises:
            UserError: a file cannot be read or is no configuration, or a word belongs to no flag.
        """
        made = Composition()
        tree: dict[str, Any] = {}
        for flag in split_flags(words, self._switches):
            if flag.name == "print_config":
                made.printed = flag.value or ""
            elif flag.name == "config" and flag.value:
                tree = self._with_file(tree, flag.value, made.files)
            elif flag.name in self._switches and flag.value is None:
                tree[flag.name] = Scalar("true", True)
            else:
                value = NoValue(flag.typed) if flag.value is None or flag.name == "config" else flag.value
                known = flag.name.partition(".")[0] in self._root
                path = flag.name.split(".") if known else [flag.name]
                tree = self._put("", Option(self._root), tree, path, value, _Origin(by_flag=True))
        reader = ValueReader()
        made.content, made.sound = reader.read(tree, Option(self._root)), not reader.wrong
        return made

    def _with_file(self, tree: dict[str, Any], name: str, files: list[Path]) -> dict[str, Any]:
        path = Path(name).expanduser()
        if os.path.exists(path):
            content = read_yaml(path, name, "--config")
            files.append(path.absolute())
        else:
            content = flag_value(name, self._root)  # the configuration itself, as JSON
            if isinstance(content, Scalar):
                raise UserError("--config", f"no such file: {path.absolute()}")
        if not isinstance(content, dict):
            value = plain(content)
            got = "an empty file" if value is None else f"the {_KIND.get(type(value), 'value')} {value!r}"
            raise UserError("--config", f"expected a mapping with model, data and trainer in {name}, got {got}")
        nested = content.get(self._command)
        content = nested if isinstance(nested, dict) else content
        for key, value in content.items():
            if key in _NOT_IN_FILES:
                raise UserError(key, f"expected on the command line, not in {name}")
            known = str(key).partition(".")[0] in self._root
            if not known and not plain(value):  # the parser would ignore an unknown key without a value
                hint = near_matches(str(key), self._root)
                raise UserError(str(key), f"no such option{f'.{hint}' if hint else ''}")
        composed: dict[str, Any] = self._with_all("", Option(self._root), tree, content, _Origin(path.parent))
        return composed

    # --- one value

    def _put(self, place: str, option: Option, now: Any, path: Sequence[str], value: Any, origin: _Origin) -> Any:
        """What is at `place` after the option at `path` below it is set; `now` is what it is before."""
        if not path:
            return self._replaced(place, option, now, value, origin)
        name, *rest = path
        if not rest and name.endswith("+"):
            name, value = name.removesuffix("+"), _Added(value)
        below = f"{place}.{name}" if place else name
        if isinstance(now, list) and takes(option.hint, "a list"):
            item = Option(item_hint(option.hint, 0))
            return [*now[:-1], self._put(place, item, now[-1] if now else None, path, value, origin)]
        if (known := fields_of(option.hint)) is not None:
            fields = _mapping(place, now)
            fields[name] = self._put(below, known.get(name, UNKNOWN), fields.get(name), rest, value, origin)
            return fields
        if class_families(option.hint) and not isinstance(now, dict):
            if (spec := self._spec(place, option, now, {name})) is not None:
                inner = known_options(spec.kind).get(name, UNKNOWN)
                argument = self._put(below, inner, spec.all_arguments.get(name), rest, value, origin)
                return dataclasses.replace(spec, arguments={**spec.arguments, name: argument})
            _refuse_text(place, name, now)
            if plain(now) is None and not takes(option.hint, "a mapping"):
                raise UserError(below, f"expected a class with arguments as {place}, got none")
        items = _mapping(place, now)
        items[name] = self._put(below, Option(item_hint(option.hint)), items.get(name), rest, value, origin)
        return items

    def _replaced(self, place: str, option: Option, now: Any, value: Any, origin: _Origin) -> Any:
        """What is at `place` after the option there is set to `value`."""
        hint = option.hint
        if isinstance(value, NoValue):
            return value
        if isinstance(value, _Added):
            before = now if isinstance(now, list) else [] if plain(now) is None else [now]
            added, origin = _content(place, hint, value.value, origin)
            items = [value.value] if isinstance(added, Scalar) else added if isinstance(added, list) else [added]
            inner = Option(item_hint(hint, 0))
            return [*before, *(self._replaced(place, inner, None, item, origin) for item in items)]
        value, origin = _content(place, hint, value, origin)
        fields = fields_of(hint)
        families = class_families(hint) if fields is None else []
        if fields is not None and isinstance(value, dict):
            given = value["init_args"] if "class_path" in value and isinstance(value.get("init_args"), dict) else value
            return self._with_all(place, option, now, given, origin)
        if families and isinstance(value, Scalar) and (kind := _named_class(place, value, families, hint)) is not None:
            return self._named(place, now, value.text, kind, origin)
        if families and isinstance(value, dict) and (value.keys() & _SPEC or not takes(hint, "a mapping")):
            return self._from_mapping(place, option, now, value, origin)
        if fields is not None and plain(value) is None and not origin.by_flag:  # an empty block of a file
            return {} if now is None else now
        if isinstance(value, list):
            items = [(f"{place}[{index}]", item_hint(hint, index), item) for index, item in enumerate(value)]
            return [self._replaced(at, Option(kind), None, item, origin) for at, kind, item in items]
        if isinstance(value, dict):
            inner = Option(item_hint(hint))
            return {key: self._replaced(f"{place}.{key}", inner, None, item, origin) for key, item in value.items()}
        return value

    def _from_mapping(self, place: str, option: Option, now: Any, value: dict[str, Any], origin: _Origin) -> Any:
        """A class given as a mapping; the mapping itself if it is malformed, which the parser refuses."""
        arguments, others = value, None
        if value.keys() & _SPEC:
            arguments, others = value.get("init_args", {}), value.get("dict_kwargs")
            if value.keys() - _SPEC or not isinstance(arguments, dict):
                return value
        if (name := value.get("class_path")) is None:
            spec = self._spec(place, option, now, {str(key) for key in arguments})
        else:
            families = class_families(option.hint)
            kind = _named_class(place, name, families, option.hint) if isinstance(name, Scalar) else None
            spec = None if kind is None else self._named(place, now, name.text, kind, origin)
        if spec is None:
            return value
        if others is not None:
            spec = dataclasses.replace(spec, others=others)
        return self._with_all(place, option, spec, arguments, origin)

    def _with_all(self, place: str, option: Option, now: Any, values: dict[Any, Any], origin: _Origin) -> Any:
        for key, value in values.items():
            now = self._put(place, option, now, option_name(str(key)).split("."), value, origin)
        return {} if now is None else now

    def _named(self, place: str, now: Any, name: str, kind: Any, origin: _Origin) -> ClassSpec:
        """A class that is named at `place`, with the arguments that stay."""
        before = now if isinstance(now, ClassSpec) else ClassSpec(None, object)
        same = before.kind is kind and before.by_flag >= origin.by_flag
        # a subclass of the module takes the place of its parent, whose options the files set
        arguments = before.arguments if same or place in _PARTS else {}
        return ClassSpec(name if "." in name else import_path(kind), kind, arguments, by_flag=origin.by_flag)

    def _spec(self, place: str, option: Option, now: Any, names: set[str]) -> ClassSpec | None:
        """The class at `place` that the arguments `names` belong to."""
        if isinstance(now, ClassSpec):
            return now
        if place in _PARTS:
            return None if plain(now) is not None else ClassSpec.of(class_families(option.hint)[0])
        return implied_class(option, now, names)


def _named_class(place: str, name: Scalar, families: list[type], hint: Any) -> Any:
    """The class that a text names; None if it names none."""
    if not isinstance(name.value, str):
        return None
    known = {member.__name__: member for family in families for member in members(family)}
    if name.text in known:
        return known[name.text]
    if not re.fullmatch(r"\w+(\.\w+)+", name.text) or (takes(hint, "a text") and os.path.exists(name.text)):
        return None
    found = import_class(name.text, place)
    return found if isinstance(found, type) and issubclass(found, tuple(families)) else None


def _content(place: str, hint: Any, value: Any, origin: _Origin) -> tuple[Any, _Origin]:
    """The tree that a flag's text or the file of a part contains, and where its own parts are.

    Raises:
        UserError: a part does not exist, or its content does not fit.
    """
    if isinstance(value, str):
        value = flag_value(value, hint)
    takes_parts = fields_of(hint) is not None or class_families(hint)
    if not (takes_parts and isinstance(value, Scalar) and value.text.endswith((".yaml", ".yml"))):
        return value, origin
    path = origin.folder / Path(value.text).expanduser()
    a_text = not isinstance(hint, FlagGroup) and takes(hint, "a text")
    if not os.path.exists(path):
        if a_text:
            return value, origin
        raise UserError(place, f"no such file: {path}")
    content = read_yaml(path, str(path), place)
    is_list = isinstance(content, list) and not isinstance(hint, FlagGroup) and takes(hint, "a list")
    if a_text and not is_list and not (isinstance(content, dict) and content.keys() & _SPEC):
        return value, origin
    if not isinstance(content, dict) and not is_list:
        raise UserError(place, f"expected a mapping in {path}, got {shown(plain(content))}")
    return content, dataclasses.replace(origin, folder=path.parent)


def _mapping(place: str, now: Any) -> dict[Any, Any]:
    """A copy of the mapping at `place`, empty if there is none.

    Raises:
        UserError: something else is given there.
    """
    if isinstance(now, dict):
        return dict(now)
    if (value := plain(now)) is not None:
        raise UserError(place, f"expected a mapping, or a YAML file with one, got {shown(value)}")
    return {}


def _refuse_text(place: str, name: str, now: Any) -> None:
    """Refuse an option below a text that names no class.

    Raises:
        UserError: `now` is a text.
    """
    if not isinstance(now, Scalar) or not isinstance(now.value, str):
        return
    function = now.text.rpartition(".")[2]
    if callable(import_class(now.text, place)):
        raise UserError(place, f"{function} is a function, which takes no arguments from a configuration")
    raise UserError(f"{place}.{name}", f"expected a class with arguments as {place}, got the text {now.text!r}")
