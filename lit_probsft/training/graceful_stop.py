"""Stopping on a signal: with a checkpoint, and all ranks at the same step."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from lit_probsft.errors import first_rank
from lit_probsft.parallel.stopping import StoppedBySignal
from lit_probsft.training.checkpoints import Checkpoints
from lit_probsft.training.lightning_internals import handle_signals
from lit_probsft.training.step_end import StepEnd
from lit_probsft.training.trainer_state import epoch_ends, validation_follows

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class GracefulStop(StepEnd):
    """Stops on SIGTERM, SIGUSR1 or Ctrl-C to any rank, to all of them, or to their launcher.

    The ranks agree at the end of the optimizer step, save a checkpoint, and exit with status 143 (130 after Ctrl-C). A
    second Ctrl-C stops at once. Under SLURM, SIGUSR1 also requeues the job.

    It replaces Lightning's handlers, which run a collective inside the handler and wait for each other forever when
    more than one rank gets the signal.

    Args:
        resume: the command that resumes the run.
    """

    def __init__(self, resume: str = "--resume") -> None:
        self._resume = resume
        self._received = 0
        self._training = False

    # --- the handler

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Last among the callbacks: the others are done with a step when this one saves it.
        trainer.callbacks = sorted(trainer.callbacks, key=lambda c: isinstance(c, GracefulStop))  # type: ignore[attr-defined]
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            handle_signals(trainer, _SIGNALS, self._handle)

    def _handle(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self._received == number or not self._training:
                raise KeyboardInterrupt
            if first_rank():
                print(
                    "\nlit_probsft: stopping after this optimizer step; Ctrl-C again to stop at once", file=sys.stderr
                )
        self._received = number
        if not self._training:  # there is nothing to save yet
            if number == getattr(signal, "SIGUSR1", None) and first_rank():
                _requeue()
            raise StoppedBySignal(f"{signal.Signals(number).name} before training began", together=False)

    # --- the agreement

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._training = True

    @override
    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not epoch_ends(trainer) and not validation_follows(trainer):
            self._agree(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if epoch_ends(trainer):
            self._agree(trainer)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._training and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._agree(trainer)

    def _agree(self, trainer: L.Trainer) -> None:
        """Stop if any rank has received a signal."""
        number = self._received
        if trainer.world_size > 1:
            received = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(received, reduce_op="max"))
        if not number:
            return
        saved = "no checkpoint was saved, as configured"
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                # There may be little time: the model is exported when the run resumes.
                saved = f"everything is saved in {callback.flush(trainer, export=False)}; to resume: {self._resume}"
        if trainer.is_global_zero and number == getattr(signal, "SIGUSR1", None):
            _requeue()
        name = signal.Signals(number).name
        message = f"stopped by {name} after optimizer step {trainer.global_step}: {saved}"
        raise StoppedBySignal(message, together=True, number=number)


def _requeue() -> None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    if re.fullmatch(r"[0-9_]+", job):
        result = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
        print(f"scontrol requeue {job}: {(result.stderr or result.stdout).strip() or 'done'}", file=sys.stderr)
