"""Checks of a parsed configuration before anything is built."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from lit_probsft.errors import UserError, check_range, first_line, near_matches
from lit_probsft.evaluation.options import EvaluationOptions
from lit_probsft.parallel import MOST_PROCESSES
from lit_probsft.training.intervals import Every
from lit_probsft.training.monitor import VAL_NLL


def check_model(config: Namespace) -> None:
    """Refuse a configuration without a model or an objective."""
    if "init_args" not in config.model or config.model.init_args.get("model") is None:
        raise UserError("model.model", "expected a model (a hub id, a folder, or RandomCausalLM), got none")
    if config.model.init_args.get("objective", ...) is None:
        raise UserError("model.objective", "expected an objective, such as NLL, got none")


def check_trainer(trainer: Namespace, command: str) -> None:
    """Refuse values that Lightning accepts but that train nothing, or not as they say."""
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
    for unit in ("epochs", "steps"):
        least, most = trainer[f"min_{unit}"], trainer[f"max_{unit}"]
        if least and most is not None and 0 <= most < least:
            raise UserError(f"trainer.min_{unit}", f"expected at most trainer.max_{unit}, {most}, got {least}")
    stage, done = _STAGES[command]
    for name in (*(("max_epochs", "max_steps") if command == "fit" else ()), f"limit_{stage}_batches"):
        if trainer[name] is not None and trainer[name] == 0:
            raise UserError(f"trainer.{name}", f"expected more than 0, got {trainer[name]}: nothing would be {done}")


def check_intervals(config: Namespace) -> Every | None:
    """When to validate, from `validate_every`; None if the trainer's flags decide.

    Raises:
        UserError: both say when to validate, or a share of an epoch is given for a stream.
    """
    every = Every.of(config.validate_every, "validate_every")
    for name, default in (("val_check_interval", None), ("check_val_every_n_epoch", 1)):
        if every is not None and config.trainer[name] != default:
            raise UserError("validate_every", f"expected either validate_every or trainer.{name}, got both")
    evaluate_every = EvaluationOptions(**vars(config.evaluation)).interval
    if "init_args" in config.data and config.data.init_args.get("streaming"):
        for interval in (every, evaluate_every, Every.of(config.checkpoints.save_every, "checkpoints.save_every")):
            if interval is not None:
                interval.refuse_stream()
    return every


def check_best(config: Namespace) -> None:
    """Refuse a metric for the best checkpoint that the run does not measure when it is needed."""
    best, evaluation = config.checkpoints.best, config.evaluation
    if not best.startswith("eval/"):
        return
    if not evaluation.tasks:
        raise UserError("checkpoints.best", f"expected {VAL_NLL} without evaluation.tasks, got {best}")
    if config.early_stopping.patience is not None and evaluation.every != "validation":
        why = f"since early stopping watches checkpoints.best, {best}, at validations"
        raise UserError("evaluation.every", f"expected validation, {why}; got {evaluation.every}")


def export_of(config: Namespace) -> str:
    """When a run exports its model: `checkpoints.export`, or by default `best` with early stopping, else `final`.

    Raises:
        UserError: the export needs checkpoints, which are disabled.
    """
    early = config.early_stopping.patience is not None
    export = config.checkpoints.export or ("best" if early else "final")
    if config.trainer.enable_checkpointing is False and export in ("best", "every"):
        if config.checkpoints.export is None:
            raise UserError(
                "early_stopping.patience",
                "expected checkpoints, since the best one is exported, or checkpoints.export: final, "
                "got trainer.enable_checkpointing: false",
            )
        raise UserError(
            "checkpoints.export", f"expected final or none with trainer.enable_checkpointing: false, got {export}"
        )
    return str(export)


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Refuse Lightning's ModelCheckpoint, whose job `checkpoints` does."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    if any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        raise UserError(
            "trainer.callbacks",
            "expected no ModelCheckpoint: --checkpoints.save_every, keep_last, best and export decide what is kept",
        )


_STAGES = {
    "fit": ("train", "trained"),
    "validate": ("val", "evaluated"),
    "test": ("test", "evaluated"),
    "predict": ("predict", "answered"),
}
"""What each command limits with `limit_STAGE_batches`, and what it does."""

_MINIMUM = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "fast_dev_run": 0,
    "log_every_n_steps": 1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "reload_dataloaders_every_n_epochs": 0,
}

_NODES = {"MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_PORT"}
"""Variables by which a launcher tells a process of the other nodes."""

_SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")


def _check_numbers(trainer: Namespace) -> None:
    """Refuse what Lightning would refuse in the middle of training, or with a message that names no flag."""
    for name, least in _MINIMUM.items():
        check_range(f"trainer.{name}", trainer[name], least, math.inf)
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
    if trainer.max_time is not None and not _duration(trainer.max_time) > timedelta():
        raise UserError(
            "trainer.max_time", f"expected days:hours:minutes:seconds (00:12:00:00), got {trainer.max_time!r}"
        )


def _duration(time: Any) -> timedelta:
    """`trainer.max_time`, a text or a mapping of the arguments of `timedelta`; 0 if it is no time."""
    units = ("days", "hours", "minutes", "seconds")
    if isinstance(time, str) and re.fullmatch(r"\d+(:\d+){3}", time.strip()):
        time = dict(zip(units, map(int, time.split(":")), strict=True))
    try:
        return time if isinstance(time, timedelta) else timedelta(**time)
    except (TypeError, OverflowError):
        return timedelta()


def _check_choices(trainer: Namespace) -> None:
    """Refuse a device, a strategy, a precision or a profiler that does not exist here."""
    accelerator, devices = trainer.accelerator, trainer.devices
    if isinstance(accelerator, str) and accelerator not in AcceleratorRegistry:
        _check_choice("accelerator", accelerator, ["auto", "cpu", "gpu", "cuda", "mps"])
    on_cuda = accelerator == "cuda" or (accelerator == "gpu" and not torch.backends.mps.is_available())
    if on_cuda and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator", f"torch finds no GPU, got {accelerator!r}; `auto` uses whatever device is available"
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
        raise UserError("trainer.devices", f"torch finds {torch.cuda.device_count()} GPUs, got {number}")
    check_range("trainer.devices", number, -1, MOST_PROCESSES)
    if trainer.num_nodes > 1 and not _NODES & os.environ.keys():
        problem = "expected the first node's address in the environment variable MASTER_ADDR, got none"
        raise UserError("trainer.num_nodes", problem)
    if isinstance(trainer.strategy, str) and trainer.strategy not in StrategyRegistry:
        stages = [f"deepspeed_stage_{stage}" for stage in (1, 2, 3)]
        _check_choice("strategy", trainer.strategy, ["auto", "ddp", "fsdp2", *stages])
    if str(trainer.precision) in ("16", "16-mixed", "16-true"):  # Lightning would replace it on a CPU
        raise UserError("trainer.precision", f"expected 32-true, bf16-mixed or bf16-true, got {trainer.precision}")
    _check_choice("profiler", trainer.profiler, ["simple", "advanced", "pytorch", "xla"])
    if trainer.barebones:
        raise UserError("trainer.barebones", "expected false, since a run's record needs a logger, got true")


def _check_choice(flag: str, value: Any, choices: list[str]) -> None:
    """Refuse a text that is not one of the choices."""
    if isinstance(value, str) and value not in choices:
        hint = near_matches(value, choices)
        raise UserError(
            f"trainer.{flag}", f"expected one of {', '.join(choices)}, got {value!r}{f'.{hint}' if hint else ''}"
        )


def read_checkpoint(path: Path, argument: str, weights_only: bool | None) -> dict[str, Any]:
    """The content of a checkpoint, its tensors memory-mapped; empty for a folder and for a pickle.

    Args:
        path: of the checkpoint.
        argument: the flag that names it, for errors.
        weights_only: of Lightning: False for a checkpoint with pickled objects, which only Lightning reads.

    Raises:
        UserError: the file does not exist or is not an intact checkpoint.
    """
    if not path.exists():
        raise UserError(argument, f"no such checkpoint: {path}")
    if path.is_dir() or weights_only is False:
        return {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is truncated or is not a checkpoint
        raise UserError(argument, f"expected an intact checkpoint, cannot read {path}: {first_line(error)}") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(argument, f"{path} is not a checkpoint written by `lit_probsft fit`")
    return content
