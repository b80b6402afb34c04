"""When checkpoints are written, which of them are kept, and where a run continues."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection

from lit_probsft.errors import UserError
from lit_probsft.parallel.strategies import FSDP2, DeepSpeed
from lit_probsft.storage.atomic import link, remove, report_write_errors, tidy
from lit_probsft.storage.checkpoint_files import newest_intact, steps
from lit_probsft.storage.checkpoint_writing import WholeFileIO, not_written
from lit_probsft.training.intervals import (
    Every,
    at_boundary,
    ends_here,
    epoch_ends,
    validates,
    validation_follows,
    validation_set,
)

MONITOR = "val/nll"


@dataclass(frozen=True)
class CheckpointOptions:
    """What a run writes down while it trains.

    Args:
        save_every: an integer is optimizer steps between checkpoints, a number between 0 and 1 a share of an epoch,
            `epoch` one (see `Every`); None for a checkpoint at each validation (at the end of each epoch where there is
            none). There is always one at the end.
        keep_last: how many of the newest stay, at least 1; with 2 a damaged one costs an interval and not the run. The
            best by val/nll stays too.
        asynchronous: copy what is to be written and go on training while it is written. Not with DeepSpeed.
        export: when the model is exported as a Hugging Face folder: `final` at the end of training into hf/; `best`
            whenever val/nll has improved, into hf/ too; `every` with each checkpoint into hf-steps/, and at the end;
            `none` never (the command `export` does it from a checkpoint). None is `best` with early stopping, whose
            last steps did not help, and `final` without.
    """

    save_every: int | float | Literal["epoch"] | None = None
    keep_last: int = 2
    asynchronous: bool = False
    export: Literal["final", "best", "every", "none"] | None = None

    def __post_init__(self) -> None:
        Every.of(self.save_every, "checkpoints.save_every")
        if self.keep_last < 1:
            raise UserError("checkpoints.keep_last", f"expected at least 1, got {self.keep_last}")
        if self.export not in ("final", "best", "every", "none", None):
            raise UserError("checkpoints.export", f"expected final, best, every or none, got {self.export!r}")


class Checkpoints(Checkpoint):
    """Writes `step-N.ckpt` between optimizer steps; `last.ckpt` and `best.ckpt` are second names of two of them.

    A name never stands for something half-written, each state is written once, and old ones go when newer ones are
    whole.

    Args:
        folder: where they lie.
        options: when, and how many.
        on_saved: called on all ranks after each checkpoint with its step and whether it is the best so far.
        on_resumed: called on all ranks when a run continues, with the checkpoints that are there, by step, and the step
            of the best one.
    """

    def __init__(
        self,
        folder: Path,
        options: CheckpointOptions = CheckpointOptions(),
        *,
        on_saved: Callable[[L.Trainer, int, bool], None] | None = None,
        on_resumed: Callable[[L.Trainer, dict[int, Path], int], None] | None = None,
    ) -> None:
        self.folder, self.options = folder, options
        self._every = Every.of(options.save_every, "checkpoints.save_every")
        self.on_saved, self.on_resumed = on_saved, on_resumed
        self.best_nll, self.best_step = math.inf, -1
        self._best_of: str | None = None  # which validation set
        self._saved_at = -1
        self._pending: int | None = None
        self._io: FileWriter | None = None

    # --- Lightning's hooks

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the strategy write whole files only."""
        if stage != "fit":
            return
        # With max_steps Lightning would continue an epoch that was over when the checkpoint was written.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
        if self.options.asynchronous and isinstance(trainer.strategy, DeepSpeed):
            raise UserError("checkpoints.asynchronous", "not possible with DeepSpeed, which writes itself; use fsdp2")
        if isinstance(trainer.strategy, FSDP2):
            trainer.strategy.asynchronous = self.options.asynchronous
        if not isinstance(trainer.strategy, DeepSpeed):
            self._io = FileWriter(self.options.asynchronous)
            trainer.strategy.checkpoint_io = self._io

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget checkpoints of steps that will be made again."""
        if self._every is not None:
            self._every.check(trainer)
        if trainer.is_global_zero and self.folder.is_dir():
            with self._told():
                tidy(self.folder)
                for step, path in steps(self.folder):
                    if step > trainer.global_step:
                        remove(path)
        there: dict[int, Path] = trainer.strategy.broadcast(dict(steps(self.folder)))
        of, self._best_of = self._best_of, validation_set(trainer)
        if self.best_step not in there or of != self._best_of:  # of other rows or another run, or lost
            self.best_nll, self.best_step = math.inf, -1
        if trainer.is_global_zero and there:
            if self.best_step < 0:
                with self._told():
                    remove(self.folder / "best.ckpt")
            self._tidy(trainer)
        self._saved_at = trainer.global_step if trainer.global_step in there else -1
        if trainer.ckpt_path and self.on_resumed is not None:
            self.on_resumed(trainer, there, self.best_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the optimizer step, unless a validation or the end of the epoch follows at once and writes it then."""
        if at_boundary(trainer):
            self._land(trainer, wait=False)
            if self._due(trainer) and not epoch_ends(trainer) and not validation_follows(trainer):
                self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The state that has been validated, and whether it is the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        nll = trainer.callback_metrics.get(MONITOR)
        better = nll is not None and float(nll) < self.best_nll
        if nll is not None and better:
            self._land(trainer, wait=True)  # what is on its way must not take the place of the best so far
            self.best_nll, self.best_step = float(nll), trainer.global_step
        if better or self._every is None or self._due(trainer):
            self.save(trainer, better)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where nothing was validated. From a checkpoint of the last micro-batch, a hook earlier, Lightning would go on
        with counters that make it repeat part of an epoch after the next interruption."""
        if epoch_ends(trainer) and (self._due(trainer) or (self._every is None and not validates(trainer))):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last state in any case."""
        self.flush(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best_nll": self.best_nll, "best_step": self.best_step, "best_of": self._best_of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best so far."""
        self.best_nll, self.best_step = state_dict["best_nll"], state_dict["best_step"]
        self._best_of = state_dict["best_of"]

    def _due(self, trainer: L.Trainer) -> bool:
        """Is it time, or does training end here? Once it has ended, Lightning counts an epoch that was cut short as
        whole, and a checkpoint would go on with the next one."""
        stops = trainer.should_stop or getattr(trainer.lightning_module, "stop_wanted", False)
        return ends_here(trainer) or stops or (self._every is not None and self._every.due(trainer))

    # --- writing

    def save(self, trainer: L.Trainer, best: bool = False, *, export: bool = True) -> Path:
        """Write the state after the last optimizer step, once; all ranks together.

        Args:
            trainer: whose state.
            best: it is the best so far.
            export: the model too, where the run exports during training; otherwise that is done when it continues.

        Raises:
            UserError: it could not be written, on all ranks alike.
        """
        step = trainer.global_step
        path, new = self._path(step), self._saved_at != step
        if new:
            self._land(trainer, wait=True)
            trainer.save_checkpoint(path, weights_only=False)
            self._saved_at = self._pending = step
            self._land(trainer, wait=not self.options.asynchronous)
        elif best:
            self._tidy(trainer)
        if export and (new or best) and self.on_saved is not None:
            self.on_saved(trainer, step, best)
        return path

    def flush(self, trainer: L.Trainer, *, export: bool = True) -> Path:
        """The present state, and all that was begun, on the disk; all ranks together. Arguments as `save`."""
        path = self.save(trainer, export=export)
        self._land(trainer, wait=True)
        return path

    def _land(self, trainer: L.Trainer, *, wait: bool) -> None:
        """What was begun gets its names once it is on the disk, everywhere."""
        if self._pending is None:
            return
        strategy = trainer.strategy
        writer: Any = strategy if isinstance(strategy, FSDP2) and strategy.sharded_checkpoints else self._io
        if not wait and not strategy.reduce_boolean_decision(writer.done(), all=True):
            return
        step, self._pending = self._pending, None
        if writer is not None:
            failure = strategy.broadcast(writer.finish())
            if failure is not None:
                raise not_written(self._path(step), failure)
        self._tidy(trainer)

    def _tidy(self, trainer: L.Trainer) -> None:
        """Second names, and room on the disk."""
        if not trainer.is_global_zero:
            return
        there = dict(steps(self.folder))
        newest = sorted(there)[-self.options.keep_last :]
        with self._told():
            link(self.folder / "last.ckpt", there[newest[-1]])
            if self.best_step in there:
                link(self.folder / "best.ckpt", there[self.best_step])
            for step, path in there.items():
                if step not in newest and step != self.best_step:
                    remove(path)

    def _told(self) -> AbstractContextManager[None]:
        return report_write_errors("checkpoint", self.folder)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.ckpt"


class FileWriter(WholeFileIO):
    """Single files, now or while training goes on.

    Args:
        asynchronous: take a copy and write it in a thread; one at a time.
    """

    def __init__(self, asynchronous: bool = False) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(max_workers=1) if asynchronous else None
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Begin to write, or write."""
        if self._thread is None:
            super().save_checkpoint(checkpoint, path)
            return
        snapshot = apply_to_collection(checkpoint, torch.Tensor, lambda t: t.detach().to("cpu", copy=True))
        self._writing = self._thread.submit(super().save_checkpoint, snapshot, path)

    def done(self) -> bool:
        """Is nothing being written?"""
        return self._writing is None or self._writing.done()

    def finish(self) -> str | None:
        """Wait; what went wrong, if anything did."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None
        failure, self.failure = self.failure, None
        return failure

    def teardown(self) -> None:
        """Lightning calls it at the end."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)


def where_to_continue(folder: Path) -> Path:
    """The newest whole checkpoint of a run; says so if a newer one is damaged.

    Raises:
        UserError: there is none.
    """
    found, complaints = newest_intact(folder)
    if found is None:
        reason = "; ".join(complaints) or "there is none"
        raise UserError("--resume", f"expected a whole checkpoint in {folder}: {reason}")
    for complaint in complaints:
        rank_zero_warn(f"--resume: {complaint}; continuing from {found}")
    return found
