"""What is wrong with a configuration and can be told before anything is built, and where an error belongs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from lit_probsft.errors import UserError, first_line, near_matches
from lit_probsft.training.intervals import Every


def check_trainer(trainer: Namespace, command: str) -> None:
    """Refuse values that Lightning takes but that train nothing or the wrong way."""
    _check_choices(trainer)
    _check_numbers(trainer)
    clip = trainer.gradient_clip_val
    if clip is not None and clip < 0:
        raise UserError("trainer.gradient_clip_val", f"expected 0 (no clipping) or more, got {clip}")
    if trainer.gradient_clip_algorithm not in (None, "norm", "value"):
        raise UserError(
            "trainer.gradient_clip_algorithm", f"expected norm or value, got {trainer.gradient_clip_algorithm!r}"
        )
    for name in ("max_epochs", "max_steps"):
        number = trainer[name]
        if number is not None and number < -1:
            raise UserError(f"trainer.{name}", f"expected at least 1, or -1 for no limit, got {number}")
    if command != "fit":
        return
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer[name] is not None and trainer[name] == 0:
            raise UserError(
                f"trainer.{name}", f"expected more than 0, since nothing would be trained; got {trainer[name]}"
            )


def check_intervals(config: Namespace) -> Every | None:
    """Refuse shares of an epoch of a stream, and two ways to say when to validate; returns when that is."""
    every = Every.of(config.validate_every, "validate_every")
    for name, usual in (("val_check_interval", None), ("check_val_every_n_epoch", 1)):
        if every is not None and config.trainer[name] != usual:
            raise UserError("validate_every", f"expected it or trainer.{name}, got both")
    if "init_args" in config.data and config.data.init_args.get("streaming"):
        for interval in (every, Every.of(config.checkpoints.save_every, "checkpoints.save_every")):
            if interval is not None:
                interval.refuse_stream()
    return every


def export_of(config: Namespace) -> str:
    """When a run exports its model: as it says, else the best where it may stop early, whose last steps did not help.

    Raises:
        UserError: that takes checkpoints, and there are none.
    """
    early = config.early_stopping.patience is not None
    export = config.checkpoints.export or ("best" if early else "final")
    if config.trainer.enable_checkpointing is False and export in ("best", "every"):
        if config.checkpoints.export is None:
            raise UserError(
                "early_stopping.patience",
                "expected checkpoints beside it, the best of which is exported, or "
                "checkpoints.export: final, got trainer.enable_checkpointing: false",
            )
        raise UserError(
            "checkpoints.export", f"expected final or none with trainer.enable_checkpointing: false, got {export}"
        )
    return str(export)


_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "fast_dev_run": 0,
    "log_every_n_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
}

_SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")


def _check_numbers(trainer: Namespace) -> None:
    """Refuse what Lightning takes and fails at in the midst of training, or refuses in words of its own."""
    for name, least in _LEAST.items():
        number = trainer[name]
        if number is not None and number < least:
            raise UserError(f"trainer.{name}", f"expected at least {least}, got {number}")
    for name in _SHARES:
        number = trainer[name]
        if number is not None and (number < 0 or (isinstance(number, float) and number > 1)):
            raise UserError(f"trainer.{name}", f"expected a share from 0 to 1 or a number of batches, got {number}")
    interval = trainer.val_check_interval
    if isinstance(interval, int | float) and (interval <= 0 or (isinstance(interval, float) and interval > 1)):
        raise UserError(
            "trainer.val_check_interval",
            f"expected a share of an epoch, above 0 and at most 1, or a number of micro-batches, got {interval}",
        )
    if isinstance(trainer.max_time, str) and not re.fullmatch(r"\d+(:\d+){3}", trainer.max_time.strip()):
        raise UserError(
            "trainer.max_time", f"expected days:hours:minutes:seconds (00:12:00:00), got {trainer.max_time!r}"
        )


def _check_choices(trainer: Namespace) -> None:
    """Refuse a device, a strategy, a precision or a profiler that is not there."""
    accelerator, devices, strategy = trainer.accelerator, trainer.devices, trainer.strategy
    known: list[str] = ["auto", "cpu", "gpu", "cuda", "mps"]
    if isinstance(accelerator, str) and accelerator not in (*known, *AcceleratorRegistry):
        hint = near_matches(accelerator, known)
        raise UserError("trainer.accelerator", f"expected one of {', '.join(known)}, got {accelerator!r}.{hint}")
    on_cuda = accelerator == "cuda" or (accelerator == "gpu" and not torch.backends.mps.is_available())
    if on_cuda and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator",
            f"expected a GPU that torch can use, found none, got {accelerator!r}; `auto` takes what is there",
        )
    number = int(devices) if re.fullmatch(r"-?\d+", str(devices)) else None
    if (number is not None and (number == 0 or number < -1)) or (
        number is None and isinstance(devices, str) and not re.fullmatch(r"auto|[\d, ]+", devices)
    ):
        raise UserError(
            "trainer.devices",
            f"expected a number of devices, at least 1, -1 for all, a list of them, or auto, got {devices!r}",
        )
    if number is not None and on_cuda and number > torch.cuda.device_count():
        raise UserError(
            "trainer.devices",
            f"expected at most {torch.cuda.device_count()}, the GPUs that torch can use, got {number}",
        )
    if isinstance(strategy, str) and strategy != "auto" and strategy not in StrategyRegistry:
        choices = ["auto", "ddp", "fsdp2", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3"]
        hint = near_matches(strategy, choices)
        raise UserError("trainer.strategy", f"expected one of {', '.join(choices)}, got {strategy!r}.{hint}")
    if str(trainer.precision) in ("16", "16-mixed", "16-true"):  # on a CPU Lightning would take another
        raise UserError("trainer.precision", f"expected 32-true, bf16-mixed or bf16-true, got {trainer.precision}")
    profilers = ["simple", "advanced", "pytorch", "xla"]
    if isinstance(trainer.profiler, str) and trainer.profiler not in profilers:
        hint = near_matches(trainer.profiler, profilers)
        raise UserError("trainer.profiler", f"expected one of {', '.join(profilers)}, got {trainer.profiler!r}.{hint}")
    if trainer.barebones:
        raise UserError("trainer.barebones", "expected false, since a run's record needs a logger, got true")


_LIGHTNING_SAYS = (
    (
        r"`val_check_interval` \((\S+)\) must be less than or equal to the number of the training batches \((\d+)\)",
        "trainer.val_check_interval",
        "expected at most {1}, the micro-batches of an epoch (or "
        "trainer.check_val_every_n_epoch null, to count on), got {0}",
    ),
    (
        r"You requested to check (\S+) of the `(\w+)_dataloader` but \S+ \* (\d+) < 1",
        "trainer.limit_{1}_batches",
        "expected a share that leaves a batch of {2}, got {0}",
    ),
    (r"Requirement '(\S+)' not met", "trainer", "expected the package {0} to be installed, it is not"),
)


def in_our_words(message: str) -> UserError | None:
    """What Lightning refuses late, as a user error; None where it is not known to be the user's."""
    for pattern, argument, problem in _LIGHTNING_SAYS:
        if match := re.search(pattern, message):
            return UserError(argument.format(*match.groups()), problem.format(*match.groups()))
    return None


def read_checkpoint(path: Path, argument: str, weights_only: bool | None) -> dict[str, Any]:
    """What is in a checkpoint, the weights left on the disk; empty for one that Lightning alone knows how to read."""
    if not path.exists():
        raise UserError(argument, f"expected a checkpoint, there is none at {path}")
    if path.is_dir() or weights_only is False:
        return {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is cut short or no checkpoint at all
        raise UserError(argument, f"expected a whole checkpoint, {path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(argument, f"expected a checkpoint written by `lit_probsft fit`, {path} is none")
    return content
