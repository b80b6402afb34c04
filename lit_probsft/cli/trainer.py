"""The trainer of a command: its loggers, its callbacks and the flags that a configuration leaves open."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback

from lit_probsft.cli.config.checks import check_callbacks, export_of
from lit_probsft.parallel.strategies import resolve_strategy
from lit_probsft.run.folder import RunFolder
from lit_probsft.run.metrics_csv import MetricsCSV
from lit_probsft.run.model_exports import ModelExports
from lit_probsft.run.record import RunRecord
from lit_probsft.run.timer import RunTimer
from lit_probsft.run.token_changes import TokenChanges
from lit_probsft.training.callbacks import Throughput
from lit_probsft.training.checkpoints import Checkpoints
from lit_probsft.training.early_stopping import EarlyStop
from lit_probsft.training.graceful_stop import GracefulStop
from lit_probsft.training.intervals import Every
from lit_probsft.training.monitor import Monitor


def complete_flags(trainer: Namespace, validate_every: Every | None) -> None:
    """Set the strategy, the precision, the length and the validation interval where the flags leave them open."""
    trainer.strategy = resolve_strategy(trainer.strategy)
    if validate_every is not None:
        trainer.val_check_interval, trainer.check_val_every_n_epoch = 1, None  # `ValidateEvery` decides
    if trainer.max_epochs is None and trainer.max_steps == -1:
        trainer.max_epochs = 1
    if trainer.precision is None:
        trainer.precision = "bf16-mixed" if _on_gpu(trainer) else "32-true"


def _on_gpu(trainer: Namespace) -> bool:
    return (
        trainer.accelerator in ("auto", "gpu", "cuda")
        and torch.cuda.is_available()
        and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    )


def loggers(chosen: Any, run: RunFolder) -> Any:
    """metrics.csv, and the loggers that the user has chosen."""
    metrics = MetricsCSV(run)
    if chosen in (None, True, False):
        return metrics
    return [metrics, *(chosen if isinstance(chosen, list) else [chosen])]


class FitCallbacks(NamedTuple):
    """The callbacks of fit; two of them report after the run."""

    record: RunRecord
    stop: EarlyStop
    all: list[Callback]


def fit_callbacks(config: Namespace, config_text: str, run: RunFolder, given: list[Callback]) -> FitCallbacks:
    """The callbacks that record, stop and save a run.

    Args:
        config: of fit, instantiated.
        config_text: the configuration as config.yaml keeps it.
        run: the run's folder.
        given: the user's own callbacks.

    Raises:
        UserError: the user's callbacks include a ModelCheckpoint.
    """
    check_callbacks(given)
    record = RunRecord(
        run,
        resume=config.resume,
        overwrite=config.overwrite,
        config=config_text,
        context={"seed": config.seed_everything},
    )
    exports, timer, evaluations, monitor = ModelExports(record, export_of(config)), RunTimer(), [], Monitor()
    if config.evaluation.tasks:
        from lit_probsft.evaluation.callback import TrainingEvaluation

        evaluations = [TrainingEvaluation(config.evaluation, record, timer, config.checkpoints.best)]
        monitor = evaluations[0].monitor
    stop = EarlyStop(config.early_stopping, given, monitor)
    resume_command = f"python -m lit_probsft fit --config {run.config} --resume"
    first = [Throughput(), timer, stop, TokenChanges(), *evaluations]
    callbacks: list[Callback] = [*first, record, exports, GracefulStop(resume_command)]
    if config.trainer.enable_checkpointing is not False:
        checkpoints = Checkpoints(run.checkpoints, config.checkpoints, monitor)
        checkpoints.on_saved, checkpoints.on_resumed = exports.on_saved, exports.on_resumed
        callbacks.append(checkpoints)
    return FitCallbacks(record, stop, callbacks)
