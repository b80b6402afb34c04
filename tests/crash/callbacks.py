"""Callbacks that tests name in a run's configuration."""

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
    """Records where training starts and the documents of each micro-batch, one line each, so that a kill loses none.

    The file is `NAME.RANK.diary`, next to the run's folder.

    Args:
        pause: seconds added to each micro-batch.
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
        os.write(self._file, (json.dumps(entry) + "\n").encode())  # one write: the whole line or none of it
        os.fsync(self._file)


class Fails(L.Callback):
    """Raises at an optimizer step, on one rank.

    Args:
        step: the step after which it raises.
        rank: the rank that raises.
        user: whether it raises a UserError instead of a RuntimeError.
    """

    def __init__(self, step: int, rank: int = 0, user: bool = False) -> None:
        self.step, self.rank, self.user = step, rank, user

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            problem = "the power goes out"
            raise UserError("", problem) if self.user else RuntimeError(problem)


class Hangs(Fails):
    """Sleeps for an hour after an optimizer step, on one rank."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            time.sleep(3600)


class SignalsBeforeTraining(L.Callback):
    """Sends SIGTERM to its own process before there is anything to save.

    Args:
        rank: the rank that gets the signal; None for all.
        early: send it when the trainer is built; otherwise at the first validation.
    """

    def __init__(self, rank: int | None = None, early: bool = False) -> None:
        self.rank = rank
        if early and rank in (None, int(os.environ.get("LOCAL_RANK", "0"))):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.rank in (None, trainer.global_rank):
            os.kill(os.getpid(), signal.SIGTERM)


class Signals(L.Callback):
    """Sends SIGTERM to its own process.

    Args:
        step: the number of completed steps at which it is sent.
        validating: send it during the validation after that step.
        number: no signal is sent unless this is SIGTERM.
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
    """Asks the trainer to stop after a micro-batch.

    Args:
        micro_batch: its index in the epoch, from 0.
    """

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.micro_batch:
            trainer.should_stop = True


class SlowDisk(L.Callback):
    """Delays each write of shards.

    Args:
        seconds: the delay.
    """

    def __init__(self, seconds: float) -> None:
        from lit_probsft.parallel import fsdp2

        write = fsdp2._try_to_save_shards

        def slowly(*args: Any) -> Any:
            time.sleep(seconds)
            return write(*args)

        fsdp2._try_to_save_shards = slowly
