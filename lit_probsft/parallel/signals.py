"""Stopping: on a signal, with a checkpoint, all ranks at the same step; and together, when one of them fails."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from lit_probsft.errors import first_rank
from lit_probsft.intervals import at_boundary, epoch_ends, validation_follows
from lit_probsft.parallel.checkpoints import Checkpoints

STOPPED = 143
"""Exit status of a run that a signal has stopped, 128 + SIGTERM: what schedulers take for "not finished"."""
INTERRUPTED = 130
"""Exit status of a run that Ctrl-C has stopped, 128 + SIGINT, as shells expect it."""

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
_PATIENCE = 30.0
"""Seconds that ranks are given to end by themselves after one of them has failed."""


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


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher with another observer: when a process has failed, the others may end by themselves first,
    with their own exit status; after that they are killed. Nobody outlives the first process."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, then call the function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[_PARENT] = str(os.getpid())
            self._call_children_scripts()
            _CHILDREN.extend(self.procs)
            threading.Thread(target=_observe, args=(self.procs,), daemon=True, name="observer").start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


_PARENT = "LIT_PROBSFT_PARENT"
_CHILDREN: list[subprocess.Popen[Any]] = []


def end_children(patience: float) -> None:
    """Wait for the processes that this one has started; after `patience` seconds end them."""
    deadline = time.monotonic() + patience
    for process in _CHILDREN:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _CHILDREN.clear()


def _observe(processes: list[subprocess.Popen[Any]]) -> None:
    while True:
        time.sleep(0.5)
        codes = [process.poll() for process in processes]
        failed = [(rank, code) for rank, code in enumerate(codes, 1) if code]
        if failed:
            break
        if all(code == 0 for code in codes):
            return
    rank, code = failed[0]
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:  # this process usually ends meanwhile, and this thread with it
        time.sleep(0.5)
    print(f"lit_probsft: rank {rank} ended with status {code}, the others did not end by themselves", file=sys.stderr)
    for process in processes:
        with contextlib.suppress(OSError):
            process.kill()
    sys.stderr.flush()
    os._exit(code if 0 < code < 128 or code in (STOPPED, INTERRUPTED) else 1)


def follow_parent() -> None:
    """A process that a `Launcher` has started ends when that one is gone, even from within a collective."""
    parent = os.environ.get(_PARENT)
    if parent is None or os.environ.get("LOCAL_RANK", "0") == "0" or os.getppid() != int(parent):
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        time.sleep(_PATIENCE)  # it may have ended in order, and so may this one
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()


# --- who says what went wrong


def first_to_fail(status: int) -> tuple[bool, int]:
    """Is this the rank that failed first, and the exit status of the one that did?

    The first tells the user; those that only lost their connection to it, or failed just like it, are silent.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return first_rank(), status
    try:
        store = distributed.distributed_c10d._get_default_store()
        if store.add("lit_probsft/failed", 1) == 1:
            store.set("lit_probsft/status", str(status))
            return True, status
        return False, int(store.get("lit_probsft/status"))
    except Exception:  # whoever kept the store has failed and gone before
        return False, status


_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset)|broken pipe|socket|remote process|peer|store|collective", re.IGNORECASE
)


def report(error: BaseException, status: int, message: str | None) -> int:
    """Tell the user about the error that ends this process, if nobody has; returns the exit status.

    Args:
        error: what happened.
        status: the exit status if it happened here first.
        message: one line for an error that the user can mend; None for a traceback.
    """
    lost = message is None and isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if lost and several:
        time.sleep(1)  # whoever failed first may not have said so yet
    first, status = first_to_fail(status)
    if first:
        if message is not None:
            print(message, file=sys.stderr)
        elif lost and several:
            print(
                f"lit_probsft: another rank has died without a word (killed, or out of memory?): {error}",
                file=sys.stderr,
            )
        else:
            traceback.print_exception(error)
        sys.stderr.flush()
    return status
