"""Adds the run's own flags to a parser, and reads the run's name and folder."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_probsft.cli.config.run_flags import OUR_DEFAULTS, RUN_FLAGS
from lit_probsft.errors import UserError
from lit_probsft.run.folder import RunFolder


def add_flags(parser: LightningArgumentParser) -> None:
    """Add the run's own flags and set our defaults."""
    for name, text, kind, default in RUN_FLAGS:
        if isinstance(kind, str):  # a group
            module, _, owner = kind.rpartition(".")
            group = getattr(import_module(module), owner)
            parser.add_argument(f"--{name}", type=group, default=group(), help=text)
        elif kind is bool:
            parser.add_argument(f"--{name}", action="store_true", help=text)
        else:
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.set_defaults(
        {
            "model": {"class_path": "lit_probsft.ProbSFTModule"},
            "data": {"class_path": "lit_probsft.InstructionDataModule"},
            **OUR_DEFAULTS,
        }
    )


def run_folder(config: Namespace) -> RunFolder:
    """The folder of the run that a configuration names."""
    return RunFolder(Path(config.runs_dir).expanduser() / run_name(config))


def run_name(config: Namespace) -> str:
    """`--name`, or the name of the first configuration file, without its suffix.

    Raises:
        UserError: the name is not that of a folder.
    """
    if config.name is not None:
        name = str(config.name)
        if name in ("", ".", "..") or name != name.strip() or re.search(r"[/\\\0]", name):
            raise UserError("--name", f"expected a folder's name, without separators (see --runs_dir), got {name!r}")
        if len(name.encode()) > 255:
            raise UserError("--name", f"expected at most 255 bytes, got {len(name.encode())}")
        return name
    files = config.get("config") or []  # the first file is the recipe; later ones change details
    return files[0].stem if files else "run"
