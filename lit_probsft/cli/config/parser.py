"""The argument parser of fit, validate, test and predict: raises a `UserError` where jsonargparse prints usage."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_dumper, set_loader
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lit_probsft.cli.config.instantiation import Builder, call, with_places
from lit_probsft.cli.config.jsonargparse_internals import literal_values
from lit_probsft.cli.config.moved import register_moved_modules
from lit_probsft.cli.config.scalars import dump, load
from lit_probsft.errors import UserError

register_moved_modules()


class Refusal(ValueError):
    """The parser's own message, for `Diagnosis` to replace."""


class Parser(LightningArgumentParser):
    """LightningArgumentParser whose errors are exceptions with a short message."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._builder = Builder()
        self._given_instantiators: list[tuple[Callable[..., Any], type, bool]] = []
        super().__init__(*args, **options)

    @override
    def parse_object(self, *args: Any, **options: Any) -> Any:
        with literal_values():
            return super().parse_object(*args, **options)

    @override
    def dump(self, *args: Any, **options: Any) -> str:
        with literal_values():
            return str(super().dump(*args, **options))

    def instantiate_classes(self, cfg: Any, **options: Any) -> Any:
        """Build every class of a configuration.

        Raises:
            UserError: a constructor refuses its arguments; names the place in the configuration.
        """
        self._builder.refused.clear()
        instantiators = [*self._given_instantiators, (self._builder.around(call), object, True)]
        try:
            with literal_values():
                return self.instantiate(with_places(cfg), instantiators=instantiators, **options)
        except Exception:
            if not self._builder.refused:
                raise
            raise self._builder.refused[0] from self._builder.refused[0].__cause__

    def add_instantiator(self, instantiator: Any, class_type: type, subclasses: bool = True) -> None:
        """Called by Lightning, for the module and the data module."""
        self._given_instantiators.append((self._builder.around(instantiator), class_type, subclasses))

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a nested class: jsonargparse handles its error
            super().error(message, ex)
        raise Refusal(message) from ex


set_loader("yaml", load, (yaml.YAMLError,))
set_dumper("yaml", dump)


def import_named_optimizer(args: Sequence[str]) -> None:
    """Import bitsandbytes if a flag or a file names one of its optimizers; the parser finds only imported classes.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    files = [Path(arg.partition("=")[2] or arg) for arg in args if arg.endswith((".yaml", ".yml"))]
    texts = [*args, *(path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file())]
    named = re.search(r"(bitsandbytes\.optim\.)?\b\w+8bit\b", "\n".join(texts))
    if named is None:
        return
    try:
        import bitsandbytes.optim  # noqa: F401
    except ImportError as error:
        raise UserError(
            "model.optimizer",
            f'{named[0]} needs bitsandbytes, which is not installed (pip install "lit_probsft[bitsandbytes]")',
        ) from error
