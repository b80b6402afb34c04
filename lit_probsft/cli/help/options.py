"""The tree of options: the flags of the run, and what can be set below `model`, `data` and `trainer`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from difflib import get_close_matches
from typing import NamedTuple, get_args

from lit_probsft.cli.config.hints import alternatives, described, is_factory
from lit_probsft.cli.config.run_flags import (
    LEFT_OPEN,
    OTHER_FLAGS,
    OUR_CHOICES,
    OUR_DEFAULTS,
    OUR_TEXTS,
    RUN_FLAGS,
    TEXT_MEANS,
)
from lit_probsft.cli.help.members import members
from lit_probsft.cli.help.source import Description, Field, describe
from lit_probsft.cli.help.texts import from_library, in_yaml
from lit_probsft.cli.help.values import default_class, default_of, hint_of, path_of, plain
from lit_probsft.errors import UserError, near_matches

_PACKAGE = __name__.partition(".")[0]
ROOTS = {
    "model": f"{_PACKAGE}.training.module.ProbSFTModule",
    "data": f"{_PACKAGE}.data.datamodule.InstructionDataModule",
    "trainer": "lightning.pytorch.trainer.trainer.Trainer",
}
GROUPS = {flag.name: flag.kind for flag in RUN_FLAGS if isinstance(flag.kind, str)}

OPTIMIZERS = tuple(f"torch.optim.{name}" for name in ("AdamW", "Adam", "SGD", "Adafactor", "RMSprop"))
"""Optimizers to name as examples."""


class Option(NamedTuple):
    """An option of a configuration.

    Attributes:
        place: its flag without dashes, such as `model.lora.r`.
        words: its type.
        default: as a configuration writes it; None if the option is required.
        text: what it does.
        classes: import paths of the classes that it takes; the first is what a text, or the default, stands for.
        given: arguments of the default that differ from the class's own defaults.
    """

    place: str
    words: str
    default: str | None
    text: str
    classes: list[str]
    given: dict[str, str]

    @property
    def is_optimizer(self) -> bool:
        """Whether its class gets the parameters of the model as its first argument."""
        return self.words == "Optimizer"


def options_of(place: str, path: str, given: dict[str, str] | None = None) -> list[Option]:
    """The options of the class at import path `path`, which is used at `place` with the arguments `given`."""
    found = describe(path)
    fields = [] if found is None else list(found.fields.values())
    options = [_option(f"{place}.{field.name}" if place else field.name, field) for field in fields]
    changed = given or {}
    return [
        option._replace(default=changed.get(option.place.rpartition(".")[2], option.default))
        for option in options
        if option.place.rpartition(".")[2] != "params"  # an optimizer's
    ]


def _option(place: str, field: Field) -> Option:
    hint = hint_of(field)
    kinds = [get_args(kind)[-1] if is_factory(kind) else kind for kind in alternatives(hint)]
    stubs = [kind for kind in kinds if isinstance(kind, type) and "." in kind.__module__]
    ours = [stub for stub in stubs if stub.__module__.startswith(f"{_PACKAGE}.")]
    classes = [path for stub in ours for path in members(path_of(stub))]
    made = default_class(field)
    of_a_text = [TEXT_MEANS.get(path_of(stub)) for stub in ours if str in kinds]
    classes.sort(key=lambda path: path not in of_a_text)
    given: dict[str, str] = {}
    if made is not None:
        given = made[1]
        classes = [made[0], *(path for path in classes if path != made[0])]
    names = [stub.__name__ for stub in stubs if stub in ours or (made is not None and stub not in ours)]
    words = OUR_CHOICES.get(place) or _joined([*names, *filter(None, [described(hint)])])
    default = plain(OUR_DEFAULTS[place]) if place in OUR_DEFAULTS else default_of(field)
    if default in names:  # a group, whose options have the defaults
        default = ""
    library = field.module.name.partition(".")[0] in ("lightning", "torch")
    text = OUR_TEXTS.get(place) or in_yaml(from_library(field.text) if library else field.text)
    return Option(place, words or "an object", LEFT_OPEN.get(place, default), text, classes, given)


def _joined(words: list[str]) -> str:
    """`a, b or c`; the last of the words may be such a list itself."""
    *others, last = words or [""]
    return ", ".join([*others, last]) if others and " or " in last else " or ".join(words)


def run_options(command: str) -> list[Option]:
    """The flags of a command that are not below `model`, `data` or `trainer`, except the fields of groups."""
    found = []
    for other in OTHER_FLAGS:
        if command in other.commands:
            found.append(Option(other.name, other.words, other.default, other.text, [], {}))
    for name, text, kind, default in RUN_FLAGS:
        if isinstance(kind, str):
            found.append(Option(name, kind.rpartition(".")[2], "", text, [kind], {}))
        else:
            words = "no value" if kind is bool else described(kind)
            found.append(Option(name, words, plain(default), text, [], {}))
    return found


@functools.cache
def below(place: str) -> list[Option]:
    """The options below a place of the tree, of the class that its default or its text stands for first."""
    if place in ROOTS:
        return options_of(place, ROOTS[place])
    if (option := option_at(place)) is None:
        return []
    found: dict[str, Option] = {}
    for index, path in enumerate(option.classes):
        for inner in options_of(place, path, option.given if index == 0 else None):
            found.setdefault(inner.place, inner)
    return list(found.values())


def option_at(place: str) -> Option | None:
    """The option with this flag; None if there is none."""
    head = place.rpartition(".")[0]
    options = below(head) if head else [*run_options("fit"), *run_options("test"), *run_options("predict")]
    return next((option for option in options if option.place == place), None)


def owners(place: str) -> list[tuple[str, Option]]:
    """The option at `place` in each class that has it, where several classes are possible, by the class's name."""
    head = place.rpartition(".")[0]
    above = option_at(head) if head and head not in ROOTS else None
    found: list[tuple[str, Option]] = []
    for path in above.classes if above is not None and len(above.classes) > 1 else ():
        fields = [option for option in options_of(head, path) if option.place == place]
        found += [(path.rpartition(".")[2], option) for option in fields]
    return sorted(found, key=lambda item: item[0].lower())


@functools.cache
def known_classes() -> dict[str, tuple[str, str]]:
    """Import path of every class that an option takes, and the option, by the class's name."""
    found = {path.rpartition(".")[2]: (path, "model.optimizer") for path in OPTIMIZERS}
    waiting: list[str] = [*ROOTS, *GROUPS]
    while waiting:
        place = waiting.pop(0)
        if place in ROOTS:
            found.setdefault(ROOTS[place].rpartition(".")[2], (ROOTS[place], place))
        option = None if place in ROOTS else option_at(place)
        new = {path.rpartition(".")[2]: (path, place) for path in (option.classes if option else ())}
        if option is None or new.keys() - found.keys():
            found = new | found
            waiting += [inner.place for inner in below(place) if inner.classes]
    return found


def all_options(command: str) -> Iterator[Option]:
    """Every option of a command; below an option only where it takes a single class."""
    waiting = [*run_options(command)]
    for root in ROOTS:
        waiting += below(root)
    while waiting:
        option = waiting.pop(0)
        yield option
        if len(option.classes) == 1:
            waiting = [*below(option.place), *waiting]


def unknown(name: str) -> UserError:
    """The error for a name that is neither an option nor a class."""
    places = [*ROOTS, *dict.fromkeys(option.place for option in all_options("fit"))]
    by_last = {place.rpartition(".")[2]: place for place in reversed(places)}
    hint = near_matches(name, [*places, *known_classes()])
    if name in by_last:
        hint = f" Did you mean {by_last[name]!r}?"
    elif not hint and (close := get_close_matches(name, by_last, 1)):
        hint = f" Did you mean {by_last[close[0]]!r}?"
    return UserError(
        "--help", f"expected an option, such as model.lora, or a class, such as Power, got {name!r}.{hint}"
    )


def class_named(name: str) -> tuple[Description, str] | None:
    """The class with this name, or import path, and the option that takes it; None if there is none."""
    path, place = known_classes().get(name, (name if "." in name else "", ""))
    found = describe(path) if path else None
    return None if found is None else (found, place)


def is_ours(path: str) -> bool:
    """Whether a class belongs to this package."""
    return path.startswith(f"{_PACKAGE}.")
