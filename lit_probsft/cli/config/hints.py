"""Which options and which classes there are, and where in a configuration each belongs: for hints in messages."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from abc import ABC
from collections.abc import Iterable
from typing import Any

from lit_probsft.errors import near_matches

_SOURCES = ("train", "validation", "test", "predict", "source")


def family_at(place: str) -> type | None:
    """The class from which those that may stand at `place` are derived; None where any may."""
    import lightning.pytorch as pl
    import torch

    from lit_probsft.data import InstructionDataModule, Source, TokenizerSource
    from lit_probsft.model import ModelSource
    from lit_probsft.model.lora import LoRA
    from lit_probsft.objectives import Objective
    from lit_probsft.training.module import ProbSFTModule

    known: dict[str, type] = {
        "objective": Objective,
        "base": Objective,
        "tokenizer": TokenizerSource,
        "model": ProbSFTModule if place == "model" else ModelSource,
        "data": InstructionDataModule,
        "lora": LoRA,
        "optimizer": torch.optim.Optimizer,
        "logger": pl.loggers.Logger,
        "callbacks": pl.Callback,
        **dict.fromkeys(_SOURCES, Source),
    }
    if re.search(r"\.(watch|sources)\.[^.]+$", place):
        return Source
    return known.get(re.sub(r"\[\d+\]$", "", place).rsplit(".", 1)[-1])


def class_named(name: str) -> type | None:
    """Our own class of that short name, of whatever family."""
    places = ("model.objective", "data.tokenizer", "data.train", "model.model", "model.lora", "model", "data")
    families = [family for place in places if (family := family_at(place)) is not None]
    return next((member for family in families for member in members(family) if member.__name__ == name), None)


def class_hint(name: str, place: str) -> str:
    """Names like `name` of classes that may stand at `place`, as they work when they are typed."""
    family = family_at(place)
    if family is None:
        return ""
    known = {member.__name__ for member in members(family)}
    if place.endswith("optimizer") and "." in name:  # torch's are known by their names too
        known = {f"{member.__module__.split('.')[0]}.optim.{member.__name__}" for member in members(family)}
    return near_matches(name, known)


def members(base: type) -> set[type]:
    """`base` and all classes derived from it that can be used."""
    found: set[type] = set() if ABC in base.__bases__ or base.__name__.startswith("_") else {base}
    member: type
    if base.__name__ in ("Optimizer", "Logger"):
        found = set()
    for member in base.__subclasses__():
        found |= members(member)
    return found


@functools.cache
def _options() -> tuple[str, ...]:
    """Options of our classes by their places."""
    import torch

    from lit_probsft.data import InstructionDataModule, Rows
    from lit_probsft.model import PretrainedCausalLM, RandomCausalLM
    from lit_probsft.model.lora import LoRA
    from lit_probsft.training.module import ProbSFTModule

    owners: dict[str, tuple[Any, ...]] = {
        "model": (ProbSFTModule,),
        "data": (InstructionDataModule,),
        "model.model": (PretrainedCausalLM, RandomCausalLM),
        "model.lora": (LoRA,),
        "model.optimizer": (torch.optim.AdamW,),
        "data.train": (Rows,),
    }
    found: dict[str, None] = {}
    for place, classes in owners.items():
        for parameter in (p for owner in classes for p in inspect.signature(owner).parameters.values()):
            found[f"{place}.{parameter.name}"] = None
            if dataclasses.is_dataclass(parameter.default):
                found |= {f"{place}.{parameter.name}.{f.name}": None for f in dataclasses.fields(parameter.default)}
    return tuple(found)


def option_hint(place: str, accepted: Iterable[str] | None, flags: Iterable[str]) -> str:
    """What may have been meant by the option at `place`, which is not there.

    Args:
        place: the option, with its owner in front.
        accepted: options of that owner; None where it has no class.
        flags: all flags that the parser knows.
    """
    from lit_probsft.objectives import Objective

    group, _, option = place.rpartition(".")
    flags = [flag for flag in flags if not flag.endswith("help")]
    there = [known for known in dict.fromkeys([*flags, *_options()]) if known.rsplit(".", 1)[-1] == option != known]
    there = sorted((known for known in there if known != place), key=lambda known: known.count("."))
    if accepted is not None:
        accepted = [*accepted]
        near = near_matches(option, [*accepted, "class_path", "init_args"])
        if not near and len(accepted) < 13:
            near = f" It takes {', '.join(accepted) or 'none'}."
    elif group:
        names = [flag.removeprefix(f"{group}.") for flag in flags if flag.startswith(f"{group}.")]
        near = near_matches(option, names) or f" It takes {', '.join(names)}." * (0 < len(names) < 13)
    else:
        near = near_matches(option, [flag for flag in flags if "." not in flag])
    if there and family_at(group) is not Objective:  # an objective's alpha is not an adapter's
        return f" Did you mean {' or '.join(map(repr, there[:3]))}?"
    return near
