"""The flags that fit, validate, test and predict have besides Lightning's, and the defaults of the trainer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_probsft.errors import UserError
from lit_probsft.run.folder import RunFolder
from lit_probsft.run.upload import HubOptions
from lit_probsft.training.checkpoints import CheckpointOptions
from lit_probsft.training.early_stopping import StoppingOptions

OUR_DEFAULTS: dict[str, Any] = {
    "trainer.gradient_clip_val": 1.0,
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": -1,
    "trainer.use_distributed_sampler": False,
    "trainer.enable_model_summary": False,
}
"""Gradient clipping as in the paper, and the whole validation set before the first step. The plan distributes the data
over the ranks, so Lightning's sampler is off."""


def add_flags(parser: LightningArgumentParser) -> None:
    """Add the run's own flags and set our defaults."""
    parser.add_argument("--name", type=str | None, default=None, help="of the run; default: the first file's name")
    parser.add_argument("--runs_dir", type=str, default="runs", help="the folder of all runs")
    parser.add_argument("--resume", action="store_true", help="continue the run of this name")
    parser.add_argument("--overwrite", action="store_true", help="replace the run of this name")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="fit: build everything, do a step over the longest documents, report what the run needs, write nothing",
    )
    parser.add_argument(
        "--checkpoints", type=CheckpointOptions, default=CheckpointOptions(), help="what is saved, and when"
    )
    parser.add_argument(
        "--early_stopping", type=StoppingOptions, default=StoppingOptions(), help="when to end before the last step"
    )
    parser.add_argument(
        "--validate_every",
        type=int | float | Literal["epoch"] | None,
        default=None,
        help="an integer: optimizer steps between validations; between 0 and 1: a share of an epoch; `epoch`: one "
        "epoch. Validates after the last step as well. Default: as the trainer's flags say, at the end of each epoch",
    )
    parser.add_argument(
        "--push_to_hub", type=HubOptions, default=HubOptions(), help="where fit uploads the exported model"
    )
    parser.add_argument(
        "--weights",
        type=str,
        default="auto",
        help="for validate, test and predict: a folder with a model, `base` for the model before training, or `auto` "
        "for the export of the run of this name, or the base if it has none",
    )
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
    if config.name:
        name = str(config.name)
        if name in (".", "..") or re.search(r"[/\\\0]", name):
            raise UserError("--name", f"expected a folder's name, without separators (see --runs_dir), got {name!r}")
        if len(name.encode()) > 255:
            raise UserError("--name", f"expected at most 255 bytes, got {len(name.encode())}")
        return name
    files = config.get("config") or []  # the first file is the recipe; later ones change details
    return files[0].stem if files else "run"
