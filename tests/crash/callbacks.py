"""Callbacks that a run is given by its configuration."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import lightning as L

from lit_probsft.errors import UserError
from lit_probsft.run.record import RunRecord


class Diary(L.Callback):
    """Writes down, where no kill can undo it, which documents are trained on: a line for each micro-batch, in
    `NAME.RANK.diary` beside the run's folder; and where training starts.

    Args:
        pause: seconds that each micro-batch takes longer.
    """

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self._file: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        record = next(c for c in trainer.callbacks if isinstance(c, RunRecord))  # type: ignore[attr-defined]
        path = record.run.path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(
            path.with_name(f"{path.name}.{trainer.global_rank}.diary"), os.O_APPEND | os.O_CREAT | os.O_WRONLY
        )
        self._write({"start": trainer.global_step})

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        part = batch_idx % trainer.accumulate_grad_batches
        self._write({"step": trainer.global_step, "part": part, "documents": batch["documents"].tolist()})
        time.sleep(self.pause)

    def _write(self, entry: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps(entry) + "\n").encode())  # whole or not at all
        os.fsync(self._file)


class Fails(L.Callback):
    """Raises at an optimizer step, on one rank.

    Args:
        step: after which step.
        rank: whose callback.
        user: is it the user's error?
    """

    def __init__(self, step: int, rank: int = 0, user: bool = False) -> None:
        self.step, self.rank, self.user = step, rank, user

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            raise (UserError if self.user else RuntimeError)("the power goes out")


class Hangs(Fails):
    """Never comes back, and talks to nobody."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            time.sleep(3600)


class SignalsBeforeTraining(L.Callback):
    """SIGTERM before there is anything to save.

    Args:
        rank: to whom; None for all.
        early: already when the trainer is built; else when the model is validated for the first time.
    """

    def __init__(self, rank: int | None = None, early: bool = False) -> None:
        self.rank = rank
        if early:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.rank in (None, trainer.global_rank):
            os.kill(os.getpid(), signal.SIGTERM)


class Signals(L.Callback):
    """Sends this process a signal.

    Args:
        step: when so many steps are done.
        validating: during the validation after it.
        number: which signal.
    """

    def __init__(self, step: int, validating: bool = False, number: str = "SIGTERM") -> None:
        self.step, self.validating, self.number = step, validating, number

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._send(trainer, False)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._send(trainer, True)

    def _send(self, trainer: L.Trainer, validating: bool) -> None:
        done = trainer.global_step == self.step and not trainer.fit_loop._should_accumulate()
        if self.number == "SIGTERM" and done and validating == self.validating:
            os.kill(os.getpid(), signal.SIGTERM)


class StopsAtMicroBatch(L.Callback):
    """Wants to stop after a micro-batch.

    Args:
        micro_batch: its number in the epoch, from 0.
    """

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.micro_batch:
            trainer.should_stop = True


class SlowDisk(L.Callback):
    """Shards take a while to be written.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        from lit_probsft.parallel import fsdp2

        write = fsdp2._try_to_save_shards

        def slowly(*args: Any) -> Any:
            time.sleep(seconds)
            return write(*args)

        fsdp2._try_to_save_shards = slowly
