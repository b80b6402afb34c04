"""How long a run took, and the first, best and last val/nll, across interruptions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lit_probsft.training.monitor import VAL_NLL
from lit_probsft.training.trainer_state import validation_set

CLOCK = "clock"
"""The key of the seconds so far in a checkpoint: all that differs between two runs that did the same."""


class RunTimer(Callback):
    """Measures the seconds of a run and collects its val/nll, over all processes that worked on it.

    If a process dies, the seconds since its last checkpoint are lost, like its steps.
    """

    def __init__(self) -> None:
        self._validation_set: str | None = None
        self._started = time.monotonic()
        self._earlier = {"training": 0.0, "validation": 0.0, "evaluation": 0.0, "total": 0.0}
        self._validation = self._evaluation = 0.0
        self._validation_within_training = 0.0
        self._training = 0.0
        self._validation_started: float | None = None
        self._training_started: float | None = None
        self.seen: dict[str, dict[str, float]] = {}
        """`first`, `best` and `last`: the `nll` (nats) of a validation and its `step`."""

    @property
    @override
    def state_key(self) -> str:
        return "Ledger"  # the class's former name, under which checkpoints hold its state

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_started = time.monotonic()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._validation_started is not None:
            taken = time.monotonic() - self._validation_started
            self._validation += taken
            self._validation_within_training += taken if self._training_started is not None else 0.0
            self._validation_started = None
        metrics = getattr(pl_module, "initial_metrics", {}) if trainer.sanity_checking else trainer.callback_metrics
        if VAL_NLL not in metrics or (trainer.sanity_checking and trainer.ckpt_path):
            return
        found = {"step": trainer.global_step, "nll": float(metrics[VAL_NLL])}
        self.seen.setdefault("first", found)
        best = self.seen.get("best")
        self.seen["best"] = found if best is None or found["nll"] < best["nll"] else best
        self.seen["last"] = found

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._training_started = time.monotonic()
        before, self._validation_set = self._validation_set, validation_set(trainer)
        if before != self._validation_set and trainer.ckpt_path:
            self.seen = {}  # val/nll of another validation set

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._training, self._training_started = self._training_seconds(), None

    def _training_seconds(self) -> float:
        if self._training_started is None:
            return self._training
        return time.monotonic() - self._training_started - self._validation_within_training

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the seconds of this block as evaluation, not as the training or validation that it interrupts."""
        began = time.monotonic()
        yield
        taken = time.monotonic() - began
        self._evaluation += taken
        self._training_started = None if self._training_started is None else self._training_started + taken
        self._validation_started = None if self._validation_started is None else self._validation_started + taken

    @property
    def seconds(self) -> dict[str, float]:
        """`training` (including saving), `validation`, `evaluation`, and `total` from the start of the command."""
        now = {
            "training": self._training_seconds(),
            "validation": self._validation,
            "evaluation": self._evaluation,
            "total": time.monotonic() - self._started,
        }
        return {name: self._earlier[name] + taken for name, taken in now.items()}

    def facts(self) -> dict[str, Any]:
        """The entries of run.json."""
        seconds = {name: round(value, 1) for name, value in self.seconds.items()}
        return {"seconds": seconds.pop("total"), "seconds_of": seconds, "validations": self.seen}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "of": self._validation_set}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen, self._validation_set = state_dict["seen"], state_dict["of"]

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CLOCK] = self.seconds

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._earlier |= checkpoint.get(CLOCK, {})
