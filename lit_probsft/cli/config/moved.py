"""Import paths of earlier versions, so that the config.yaml of an old run still parses."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

MOVED = {
    "module": "training.module",
    "optim": "training.optim",
    "lora": "model.lora",
    "reference": "model.reference",
    "generation": "model.generation",
    "data.sources": "data",
    "data.choices": "data.rows.choices",
    "data.mixture": "data.rows.mixture",
    "data.tokenizers": "data.tokens.tokenizers",
}
"""Old and new paths, below the package, of modules whose classes and functions a configuration can name."""


class _MovedModule(ModuleType):
    """A module's old path; imports the new module when a name is looked up."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__(old)
        self.__dict__["_new"] = new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for these and must not load the module
            raise AttributeError(name)
        return getattr(import_module(self.__dict__["_new"]), name)


def register_moved_modules() -> None:
    """Make the old import paths resolve in this process."""
    package = __name__.partition(".")[0]
    for old, new in MOVED.items():
        name = f"{package}.{old}"
        sys.modules.setdefault(name, _MovedModule(name, f"{package}.{new}"))
