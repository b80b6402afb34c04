"""The argument parser of fit, validate, test and predict: raises a `UserError` where jsonargparse prints usage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

import lit_probsft.data.rows.choices
import lit_probsft.data.rows.figlet
import lit_probsft.data.rows.mixture  # noqa: F401  by their short names the parser finds only what is imported
from lit_probsft.cli.config.explain import values_as_typed, with_own_defaults
from lit_probsft.cli.config.instantiation import Builder, call, with_places
from lit_probsft.cli.config.moved import register_moved_modules
from lit_probsft.errors import UserError

register_moved_modules()


class Parser(LightningArgumentParser):
    """Raises a `UserError` with one message instead of printing hundreds of lines of usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._builder = Builder()
        super().__init__(*args, **options)

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """An objective that is named on the command line starts from its own defaults.

        jsonargparse would hand it the old one's arguments of the same name: alpha = 10 of a Power in the config would
        silently become the alpha of whatever class is named after it.
        """
        with values_as_typed():
            return super().parse_args(None if args is None else with_own_defaults(list(args)), *rest, **options)

    def instantiate_classes(self, cfg: Any, **options: Any) -> Any:
        """Build every class of a configuration.

        Raises:
            UserError: a constructor refuses its arguments; names the place in the configuration.
        """
        self.add_instantiator(call, object)  # Lightning has added its own for module and data module before
        try:
            return super().instantiate_classes(with_places(cfg), **options)
        except Exception:
            if not self._builder.refused:
                raise
            raise self._builder.refused[0] from self._builder.refused[0].__cause__

    @override
    def add_instantiator(self, instantiator: Any, class_type: type, *rest: Any, **options: Any) -> None:
        super().add_instantiator(self._builder.around(instantiator), class_type, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse says; parsers within parsers keep its own way, and only the outermost knows the
        argument."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise _Complaint("", message) from ex


class _Complaint(UserError):
    """In the parser's words, which nobody has explained yet."""


def _import_named(args: Sequence[str]) -> None:
    """By its short name the parser finds only what is imported: bitsandbytes, where an optimizer of it is asked for.

    Raises:
        UserError: it is not installed.
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
