"""Stopping: on a signal, with a checkpoint, all ranks at the same step; and together, when one of them fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from lit_probsft.errors import first_rank
from lit_probsft.parallel.processes import INTERRUPTED, STOPPED
from lit_probsft.training.checkpoints import Checkpoints
from lit_probsft.training.intervals import at_boundary, epoch_ends, validation_follows

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class StoppedBySignal(SystemExit):
    """The run ends here because it was told to; its state is on the disk.

    Args:
        message: why, for the user.
        together: do all ranks end at this point?
        number: of the signal.
    """

    def __init__(self, message: str, *, together: bool, number: int = signal.SIGTERM) -> None:
        super().__init__(INTERRUPTED if number == signal.SIGINT else STOPPED)
        self.message, self.together = message, together


class GracefulStop(Callback):
    """SIGTERM, SIGUSR1 or Ctrl-C to any rank, to all, or to the process that launched them: the ranks agree at the end
    of the optimizer step, write a checkpoint, and end with exit status 143 (130 after Ctrl-C). A second Ctrl-C ends at
    once.

    It takes the place of Lightning's handlers, which run a collective inside the handler and wait for each other for
    ever when more than one rank is signalled. Under SLURM, SIGUSR1 also puts the job back into the queue.

    Args:
        resume: the command that continues the run.
    """

    def __init__(self, resume: str = "--resume") -> None:
        self._resume = resume
        self._received = 0
        self._training = False

    # --- the handler

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take Lightning's place, and the last one among the callbacks: what others do with a step is done by then."""
        trainer.callbacks = sorted(trainer.callbacks, key=lambda c: isinstance(c, GracefulStop))  # type: ignore[attr-defined]
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            trainer._signal_connector = _OnlyOurs(trainer, self._handle)
            trainer._signal_connector.register_signal_handlers()

    def _handle(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self._received == number or not self._training:
                raise KeyboardInterrupt
            if first_rank():
                print(
                    "\nlit_probsft: stopping after this optimizer step; Ctrl-C again to stop at once", file=sys.stderr
                )
        self._received = number
        if not self._training:  # nothing to be saved yet
            if number == getattr(signal, "SIGUSR1", None) and first_rank():
                _requeue()
            raise StoppedBySignal(f"{signal.Signals(number).name} before training began", together=False)

    # --- the agreement

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on there is something to save."""
        self._training = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an optimizer step; if a validation or the end of the epoch follows, after it."""
        if at_boundary(trainer) and not epoch_ends(trainer) and not validation_follows(trainer):
            self._agree(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the last step of an epoch."""
        if epoch_ends(trainer):
            self._agree(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the validation of a step."""
        if self._training and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._agree(trainer)

    def _agree(self, trainer: L.Trainer) -> None:
        number = self._received
        if trainer.world_size > 1:
            number = int(trainer.strategy.reduce(_number(trainer, number), reduce_op="max"))
        if not number:
            return
        saved = "no checkpoint was asked for"
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                # No export: there may be little time, and it is made up for when the run continues.
                saved = f"all of it is in {callback.flush(trainer, export=False)}; to continue: {self._resume}"
        if trainer.is_global_zero and number == getattr(signal, "SIGUSR1", None):
            _requeue()
        name = signal.Signals(number).name
        message = f"stopped by {name} after optimizer step {trainer.global_step}: {saved}"
        raise StoppedBySignal(message, together=True, number=number)


def _number(trainer: L.Trainer, value: int) -> torch.Tensor:
    return torch.tensor(float(value), device=trainer.strategy.root_device)


def _requeue() -> None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    if re.fullmatch(r"[0-9_]+", job):
        result = subprocess.run(["scontrol", "requeue", job], check=False, capture_output=True, text=True)
        print(f"scontrol requeue {job}: {(result.stderr or result.stdout).strip() or 'done'}", file=sys.stderr)


class _OnlyOurs(_SignalConnector):
    """Registers our handler where Lightning would register its own, and restores the former ones at the end."""

    def __init__(self, trainer: L.Trainer, handler: Callable[[int, Any], None]) -> None:
        super().__init__(trainer)
        self._handler = handler

    def register_signal_handlers(self) -> None:
        if not self._original_handlers:
            self._original_handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            self._register_signal(number, self._handler)


# --- processes that end together


# --- who says what went wrong
