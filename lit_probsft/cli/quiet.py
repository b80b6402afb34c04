"""Filters library messages that users cannot act on, and writes the warnings of this package as plain lines."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import lightning.fabric.utilities.warnings  # noqa: F401  (it replaces the format of warnings, which is kept for others)

import lit_probsft

_WARNINGS = (
    "does not have many workers",  # batches are small arrays
    "LightningCLI's args parameter is intended",  # main() passes on what the shell gave
    "LeafSpec.*is deprecated",  # between Lightning and torch
    "Total length of `list` across ranks is zero",  # no validation rows, which is allowed
    "The number of training batches .* is smaller than the logging interval",  # run.json has the last step
    "Checkpoint directory .* exists and is not empty",  # when a run resumes
    "You defined a `validation_step` but have no `val_dataloader`",
    r"It is recommended to use `self.log\(.*sync_dist=True",  # the metrics are already summed over ranks
    "Since DeepSpeed handles gradient clipping internally",  # and the module relies on it
    "When saving the DeepSpeed Stage 3 checkpoint",
    r"`torch.distributed.*` is deprecated",  # between torch and torch, or DeepSpeed
    "FSDP2-wrapped module .* returned a view tensor",  # nothing is changed in place
    "`is_gradient_checkpointing` is deprecated",  # between transformers and transformers
)
_LINES = (
    "^💡|^TPU available",  # advertisements
    "^GPU available: False, used: False",  # there is no other choice
    "Seed set to",  # it is in config.yaml
    r"^`Trainer\.fit` stopped: `max_(epochs|steps)=",  # the run's last lines say so
    "^Restored all states from the checkpoint",  # repeats "Restoring states from ..."
    r"^`Trainer\(.*\)` was configured so",  # about a setting that a command makes itself
    "Setting accelerator to CPU",  # from DeepSpeed, even where it is not used
    "^Failed to load CPU .* from kernels-community",  # for 4-bit weights, used or not
)
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.trainer.setup",
    "DeepSpeed",
    "bitsandbytes.backends.cpu.ops",
)
_PACKAGE = Path(lit_probsft.__file__).parent
_format_others = warnings.formatwarning
_PATTERN = re.compile("|".join(_LINES))


def _is_useful(record: logging.LogRecord) -> bool:
    return not _PATTERN.search(record.getMessage())


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of this package without the line of code that gives it."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(_PACKAGE):
        return f"lit_probsft: warning: {message}\n"
    return _format_others(message, category, filename, lineno, line)


def quieten() -> None:
    """Install the filters. A second call changes nothing."""
    warnings.formatwarning = _format_warning
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()  # for loading and saving weights; ours is for training
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_useful)
