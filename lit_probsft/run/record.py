"""run.json: the record of a run, written when training starts and ends."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.parallel.stopping import StoppedBySignal
from lit_probsft.run.changed_flags import changed_flags, describe_changes
from lit_probsft.run.facts import complete_epochs, current_metrics, describe_run, forgetting
from lit_probsft.run.folder import RunFolder
from lit_probsft.run.metrics_csv import MetricsCSV
from lit_probsft.run.timer import RunTimer
from lit_probsft.run.token_changes import TokenChanges
from lit_probsft.storage.atomic import read_json, write_json, write_text
from lit_probsft.training.callbacks import Throughput, datamodule_of
from lit_probsft.training.checkpoints import Checkpoints
from lit_probsft.training.early_stopping import EarlyStop
from lit_probsft.training.lightning_internals import between_steps
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.run_length import steps_in_epoch, total_steps

_T = TypeVar("_T", bound=Callback)


class RunRecord(Callback):
    """Claims the run folder once the first step is done, and keeps run.json.

    An error in the first step leaves no folder behind. A folder that exists is claimed before the first step.

    Args:
        run: the folder.
        resume: continue the run in this folder.
        overwrite: replace the run in this folder.
        config: the configuration as YAML.
        context: entries of run.json that the caller knows.
    """

    def __init__(
        self, run: RunFolder, *, resume: bool, overwrite: bool = False, config: str, context: Mapping[str, Any]
    ) -> None:
        self.run, self.resume, self.overwrite, self.config_text = run, resume, overwrite, config
        self.content: dict[str, Any] = dict(context)
        """The content of run.json."""
        self.already_complete = False
        """Whether there was nothing left to train."""
        self._metrics: dict[str, float] = {}
        self._config_before: str | None = None
        self._checksums: list[int] = []
        self.claimed = False
        """Whether the folder belongs to this run, so that files may be written to it."""
        self._trainer: L.Trainer | None = None
        self._started = time.time()

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._trainer = trainer

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ProbSFTModule)
        if trainer.is_global_zero and self._config_before is not None and self.resume:
            pl_module.changes_reported = True
            for line in describe_changes(changed_flags(self._config_before, self.config_text)):
                rank_zero_info(line)
        if self.run.in_use:
            self._claim(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.claimed and between_steps(trainer):
            self._claim(trainer, pl_module)

    def _claim(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ProbSFTModule)
        self.claimed = True
        if not trainer.is_global_zero:
            return
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._started))
        facts = {"status": "running", "started": started, **describe_run(trainer, pl_module)}
        self.run.claim(resume=self.resume, overwrite=self.overwrite)
        if self.resume:
            rank_zero_info(_where_it_resumes(trainer, self.run))
            facts["exported_step"] = self._read().get("exported_step")
        self.content.update(facts)
        write_text(self.run.config, self.config_text)
        self.write()
        self._write_dropped_rows(trainer)
        if (table := _table(trainer)) is not None:
            table.release(trainer.global_step, self._checksums)

    def _write_dropped_rows(self, trainer: L.Trainer) -> None:
        dropped_rows: Mapping[str, list[dict[str, Any]]] = getattr(datamodule_of(trainer), "dropped_rows", {})
        lines = [
            json.dumps({"split": split, **row}, ensure_ascii=False) + "\n"
            for split in dropped_rows
            for row in dropped_rows[split]
        ]
        if lines:
            write_text(self.run.skipped, "".join(lines))

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ProbSFTModule)
        if checkpoints := _found(trainer, Checkpoints):
            checkpoints.flush(trainer)
        if not self.claimed:
            self._claim(trainer, pl_module)
        if trainer.is_global_zero:
            self._finish(trainer, pl_module, "stopped" if trainer.interrupted else "completed")

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # If nothing was left to train, the earlier process may have ended before it wrote "completed".
        if not self.resume or "status" in self.content or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, ProbSFTModule)
        self.already_complete = True
        self.content.update(self._read() or describe_run(trainer, pl_module))
        if self.content.get("status") != "completed":
            self._finish(trainer, pl_module, "completed")

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and self.content.get("status") == "running":
            assert isinstance(pl_module, ProbSFTModule)
            stopped = isinstance(exception, StoppedBySignal)
            if not stopped:
                self.content["error"] = f"{type(exception).__name__}: {exception}"
            with contextlib.suppress(UserError):  # a full disk must not hide the exception
                self._finish(trainer, pl_module, "stopped" if stopped else "failed")

    def _finish(self, trainer: L.Trainer, pl_module: ProbSFTModule, status: str) -> None:
        self.run.check_present()
        self._write_dropped_rows(trainer)  # a stream drops rows while it trains
        metrics = {**(self.content.get("metrics") or {}), **self._metrics, **current_metrics(trainer)}
        changes, throughput = _found(trainer, TokenChanges), _found(trainer, Throughput)
        timer, stop = _found(trainer, RunTimer), _found(trainer, EarlyStop)
        self.content.update(
            status=status,
            **(timer.facts() if timer else {}),
            stopped_early=stop.reason(trainer) if stop and status == "completed" else None,
            counts={
                "optimizer_steps": trainer.global_step,
                "epochs": complete_epochs(trainer),
                "tokens": throughput.total_tokens if throughput else None,
                "supervised_tokens": throughput.total_supervised if throughput else None,
                "skipped_steps": pl_module.skipped_steps,
            },
            initial_metrics=pl_module.initial_metrics,
            metrics=metrics,
            forgetting=forgetting(pl_module.initial_metrics, metrics, pl_module.evaluation_metrics.watched),
        )
        try:
            tokens = changes.write(self.run.tokens, trainer, pl_module) if changes else None
        except UserError as error:  # a full disk: run.json and the model may still fit
            rank_zero_warn(f"tokens.npz is not written: {error}")
        else:
            self.content.update({} if tokens is None else {"tokens": tokens})
        self.write()

    def note_exported(self, step: int) -> None:
        """Record the step whose model is in hf/."""
        self.content["exported_step"] = step
        self.write()

    def write(self) -> None:
        """Write run.json."""
        self.run.check_present()
        write_json(self.run.record, self.content)

    def _read(self) -> dict[str, Any]:
        """The record of the run so far; empty if the file is missing or damaged."""
        try:
            return read_json(self.run.record) or {}
        except UserError as error:
            rank_zero_warn(f"--resume: {error}; a new one is written")
            return {}

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            self.run.check_present()

    @override
    def state_dict(self) -> dict[str, Any]:
        measured = {} if self._trainer is None else current_metrics(self._trainer)
        metrics = {k: v for k, v in {**self._metrics, **measured}.items() if k.startswith("val/")}
        table = None if self._trainer is None else _table(self._trainer)
        return {"metrics": metrics, "config": self.config_text, "rows": [] if table is None else [*table.checksums]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics, self._config_before = state_dict["metrics"], state_dict.get("config")
        self._checksums = state_dict.get("rows", [])


def _where_it_resumes(trainer: L.Trainer, run: RunFolder) -> str:
    """The checkpoint, the step and the epoch that a run continues from, for its user."""
    checkpoint, step, total = Path(str(trainer.ckpt_path)), trainer.global_step, total_steps(trainer)
    if checkpoint.is_relative_to(run.path):
        checkpoint = checkpoint.relative_to(run.path)
    place = f"step {step} of {total}"
    if in_epoch := steps_in_epoch(trainer):
        place += f", epoch {min(step, total - 1) // in_epoch + 1} of {-(-total // in_epoch)}"
    return f"resuming {run.path} from {checkpoint}: {place}"


def _table(trainer: L.Trainer) -> MetricsCSV | None:
    """The trainer's metrics.csv."""
    return next((logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)), None)


def _found(trainer: L.Trainer, kind: type[_T]) -> _T | None:
    """The trainer's callback of a kind."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]
