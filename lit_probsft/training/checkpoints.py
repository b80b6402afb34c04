"""When checkpoints are saved, which of them are kept, and from which a run resumes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.parallel.strategies import FSDP2, DeepSpeed
from lit_probsft.storage.atomic import link, remove, report_write_errors, tidy
from lit_probsft.storage.checkpoint_files import newest_intact, steps
from lit_probsft.storage.checkpoint_writing import not_written
from lit_probsft.training.checkpoint_writer import CheckpointWriter
from lit_probsft.training.intervals import Every
from lit_probsft.training.lightning_internals import finish_epochs_on_resume
from lit_probsft.training.monitor import VAL_NLL, Monitor
from lit_probsft.training.step_end import StepEnd
from lit_probsft.training.trainer_state import epoch_ends, run_ends, validates, validation_follows


@dataclass(frozen=True)
class CheckpointOptions:
    """When and what a run saves.

    Args:
        save_every: an integer is optimizer steps between checkpoints, a number between 0 and 1 a share of an epoch,
            `epoch` one epoch (see `Every`). None saves a checkpoint at each validation, or at the end of each epoch
            without validation data. The last step is always saved.
        keep_last: how many of the newest checkpoints are kept, at least 1. With 2, a damaged one costs an interval and
            not the run. The best is kept too.
        best: the metric that decides which checkpoint is the best, and what early stopping waits for: `val/nll`, or a
            score of an evaluation, such as `eval/gsm8k/accuracy`.
        asynchronous: copy the state and continue training while it is written. Not with DeepSpeed.
        export: when the model is exported as a Hugging Face folder. `final`: at the end of training, to hf/. `best`:
            whenever the metric `best` improves, also to hf/. `every`: with each checkpoint, to hf-steps/, and at the
            end. `none`: never (the command `export` does it from a checkpoint). None is `best` with early stopping,
            whose last steps did not help, and `final` without.
    """

    save_every: int | float | Literal["epoch"] | None = None
    keep_last: int = 2
    best: str = VAL_NLL
    asynchronous: bool = False
    export: Literal["final", "best", "every", "none"] | None = None

    def __post_init__(self) -> None:
        Every.of(self.save_every, "checkpoints.save_every")
        if self.keep_last < 1:
            raise UserError("checkpoints.keep_last", f"expected at least 1, got {self.keep_last}")
        if self.best != VAL_NLL and not (self.best.startswith("eval/") and self.best.count("/") >= 2):
            raise UserError("checkpoints.best", f"expected {VAL_NLL} or such as eval/gsm8k/accuracy, got {self.best!r}")
        if self.export not in ("final", "best", "every", "none", None):
            raise UserError("checkpoints.export", f"expected final, best, every or none, got {self.export!r}")


class Checkpoints(StepEnd, Checkpoint):
    """Saves `step-N.ckpt` between optimizer steps; `last.ckpt` and `best.ckpt` are links to two of them.

    A name never refers to a partial file. Each state is written once, and old checkpoints are removed when newer ones
    are complete.

    Args:
        folder: of the checkpoints.
        options: when to save, and how many to keep.
        monitor: decides which checkpoint is the best.
        on_saved: called on all ranks after each checkpoint with its step and whether it is the best so far.
        on_resumed: called on all ranks when a run resumes, with the existing checkpoints by step, and the step of the
            best one.
    """

    def __init__(
        self,
        folder: Path,
        options: CheckpointOptions = CheckpointOptions(),
        monitor: Monitor = Monitor(),  # noqa: B008  has no state
        *,
        on_saved: Callable[[L.Trainer, int, bool], None] | None = None,
        on_resumed: Callable[[L.Trainer, dict[int, Path], int], None] | None = None,
    ) -> None:
        self.folder, self.options, self.monitor = folder, options, monitor
        self._every = Every.of(options.save_every, "checkpoints.save_every")
        self.on_saved, self.on_resumed = on_saved, on_resumed
        self.best_value, self.best_step = monitor.worst, -1
        self._measured_on: str | None = None
        self._saved_step = -1
        self._unfinished: int | None = None
        self._writer: CheckpointWriter | None = None

    # --- Lightning's hooks

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        finish_epochs_on_resume(trainer)
        if self.options.asynchronous and isinstance(trainer.strategy, DeepSpeed):
            raise UserError("checkpoints.asynchronous", "not possible with DeepSpeed, which writes itself; use fsdp2")
        if isinstance(trainer.strategy, FSDP2):
            trainer.strategy.asynchronous = self.options.asynchronous
        if not isinstance(trainer.strategy, DeepSpeed):
            self._writer = CheckpointWriter(self.options.asynchronous)
            trainer.strategy.checkpoint_io = self._writer

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._every is not None:
            self._every.check(trainer)
        if trainer.is_global_zero and self.folder.is_dir():
            with self._reporting_errors():
                tidy(self.folder)
                for step, path in steps(self.folder):
                    if step > trainer.global_step:  # this run takes that step again
                        remove(path)
        existing: dict[int, Path] = trainer.strategy.broadcast(dict(steps(self.folder)))
        before, self._measured_on = self._measured_on, self.monitor.measured_on(trainer)
        if self.best_step not in existing or before != self._measured_on:
            self.best_value, self.best_step = self.monitor.worst, -1
        if trainer.is_global_zero and existing:
            if self.best_step < 0:
                with self._reporting_errors():
                    remove(self.folder / "best.ckpt")
            self._link_and_remove(trainer)
        self._saved_step = trainer.global_step if trainer.global_step in existing else -1
        if trainer.ckpt_path and self.on_resumed is not None:
            self.on_resumed(trainer, existing, self.best_step)

    @override
    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish(trainer, wait=False)
        # A validation or the end of the epoch saves this state itself.
        if not epoch_ends(trainer) and not validation_follows(trainer):
            self.save(trainer, due=self._due(trainer))

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.save(trainer, due=self._every is None or self._due(trainer))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Saved a hook earlier, with the last micro-batch, Lightning's counters would repeat a part of the epoch after
        # the next interruption.
        if epoch_ends(trainer):
            self.save(trainer, due=self._due(trainer) or (self._every is None and not validates(trainer)))

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.flush(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best_nll": self.best_value, "best_step": self.best_step, "best_of": self._measured_on}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_value, self.best_step = state_dict["best_nll"], state_dict["best_step"]
        self._measured_on = state_dict["best_of"]

    def _due(self, trainer: L.Trainer) -> bool:
        """Whether to save now, by the interval or because training ends with this step.

        After the end, Lightning counts an epoch that was cut short as complete, and a run would resume with the next.
        """
        return run_ends(trainer) or trainer.should_stop or (self._every is not None and self._every.due(trainer))

    # --- saving

    def save(self, trainer: L.Trainer, *, due: bool = True, export: bool = True) -> Path:
        """Save the state after the last optimizer step, once; all ranks together.

        Args:
            trainer: its state is saved.
            due: whether to save it even if it is not the best so far.
            export: also export the model, if the run exports during training; otherwise that happens on resume.

        Raises:
            UserError: the file could not be written; on all ranks.
        """
        step, value = trainer.global_step, self.monitor.value(trainer)
        best = value is not None and self.monitor.improves(value, self.best_value)
        if value is not None and best:
            self._finish(trainer, wait=True)  # an unfinished checkpoint must not replace the best one
            self.best_value, self.best_step = value, step
        path, new = self._path(step), self._saved_step != step and (due or best)
        if new:
            self._finish(trainer, wait=True)
            trainer.save_checkpoint(path, weights_only=False)
            self._saved_step = self._unfinished = step
            self._finish(trainer, wait=not self.options.asynchronous)
        elif best:
            self._link_and_remove(trainer)
        if export and (new or best) and self.on_saved is not None:
            self.on_saved(trainer, step, best)
        return path

    def flush(self, trainer: L.Trainer, *, export: bool = True) -> Path:
        """Save the present state and wait until it is written; all ranks together. Arguments as `save`."""
        path = self.save(trainer, export=export)
        self._finish(trainer, wait=True)
        return path

    def _finish(self, trainer: L.Trainer, *, wait: bool) -> None:
        """Link the last checkpoint once it is written on all ranks."""
        if self._unfinished is None:
            return
        strategy = trainer.strategy
        writer: Any = strategy if isinstance(strategy, FSDP2) and strategy.sharded_checkpoints else self._writer
        if not wait and not strategy.reduce_boolean_decision(writer.done(), all=True):
            return
        step, self._unfinished = self._unfinished, None
        if writer is not None:
            failure = strategy.broadcast(writer.finish())
            if failure is not None:
                raise not_written(self._path(step), failure)
        self._link_and_remove(trainer)

    def _link_and_remove(self, trainer: L.Trainer) -> None:
        """Link the last and the best checkpoint, and remove old ones."""
        if not trainer.is_global_zero:
            return
        existing = dict(steps(self.folder))
        newest = sorted(existing)[-self.options.keep_last :]
        with self._reporting_errors():
            link(self.folder / "last.ckpt", existing[newest[-1]])
            if self.best_step in existing:
                link(self.folder / "best.ckpt", existing[self.best_step])
            for step, path in existing.items():
                if step not in newest and step != self.best_step:
                    remove(path)

    def _reporting_errors(self) -> AbstractContextManager[None]:
        return report_write_errors("checkpoint", self.folder)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.ckpt"


def where_to_continue(folder: Path) -> Path:
    """The newest intact checkpoint of a run; warns of newer ones that are damaged.

    Raises:
        UserError: the run has no intact checkpoint.
    """
    found, complaints = newest_intact(folder)
    if found is None:
        reason = "; ".join(complaints) or "it has no checkpoints"
        raise UserError("--resume", f"expected an intact checkpoint in {folder}: {reason}")
    for complaint in complaints:
        rank_zero_warn(f"--resume: {complaint}; resuming from {found}")
    return found
