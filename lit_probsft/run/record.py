"""What a run leaves behind about itself: metrics.csv, run.json, and the model card's facts; the export at its end."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_probsft.errors import UserError
from lit_probsft.model.sources import describe
from lit_probsft.parallel.sharding import whole_weights
from lit_probsft.parallel.strategies import sharding_of
from lit_probsft.run.card import run_card
from lit_probsft.run.changed_flags import changed_flags, told_changes
from lit_probsft.run.export import CHECKPOINT_KEY, checkpoint_entry, export_checkpoint, export_model
from lit_probsft.run.folder import RunFolder
from lit_probsft.run.metrics_csv import MetricsCSV
from lit_probsft.run.summary import RunTimer
from lit_probsft.run.token_changes import TokenChanges, forgetting
from lit_probsft.storage.atomic import write_json, write_text
from lit_probsft.storage.checkpoint_files import steps
from lit_probsft.training.callbacks import Throughput, datamodule_of
from lit_probsft.training.checkpoints import Checkpoints
from lit_probsft.training.early_stopping import EarlyStop
from lit_probsft.training.graceful_stop import StoppedBySignal
from lit_probsft.training.intervals import steps_in_epoch
from lit_probsft.training.module import ProbSFTModule

_T = TypeVar("_T", bound=Callback)


class RunRecord(Callback):
    """Claims the run's folder when the first step is due, keeps `run.json`, and exports the model at the end."""

    def __init__(
        self, run: RunFolder, *, resume: bool, config: str, context: Mapping[str, Any], export: str = "final"
    ) -> None:
        self.run, self.resume, self.config_text, self.export = run, resume, config, export
        self.content: dict[str, Any] = dict(context)
        self._metrics: dict[str, float] = {}
        self._trainer: L.Trainer | None = None
        self.already_complete = False
        """Was there nothing left to train?"""
        self._started = time.time()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Whose metrics they are."""
        self._trainer = trainer

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Data, model, optimizer and objective have been used once by now, so that nothing half-written can be left
        behind. On resume, drop the rows that will be made again."""
        assert isinstance(pl_module, ProbSFTModule)
        if not trainer.is_global_zero:
            return
        facts: dict[str, Any] = {
            "status": "running",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._started)),
            "versions": versions(),
            "machine": {
                "host": platform.node(),
                "platform": platform.platform(),
                "device": _device_name(trainer),
                "world_size": trainer.world_size,
                "precision": str(trainer.precision),
            },
            "objective": describe_objective(pl_module),
            "model": {"name": model_name(pl_module), **describe(pl_module.model)},
            **({"reference": reference} if (reference := pl_module.describe_reference()) else {}),
            "data": dict(getattr(datamodule_of(trainer), "report", {})),
            "commits": commits(trainer, pl_module),
            "data_fingerprint": getattr(datamodule_of(trainer), "fingerprint", None),
            "recipe": recipe(trainer, pl_module),
            "strategy": type(trainer.strategy).__name__,
        }
        self.run.claim(resume=self.resume)
        if self.resume and self.run.record.exists():
            facts["exported_step"] = json.loads(self.run.record.read_text(encoding="utf-8")).get("exported_step")
        self.content.update(facts)
        if self.resume and self.run.config.exists():
            pl_module.changes_told = True
            before = self.run.config.read_text(encoding="utf-8")
            for line in told_changes(changed_flags(before, self.config_text), self.run.config):
                rank_zero_info(line)
        write_text(self.run.config, self.config_text)
        write_json(self.run.record, self.content)
        self._list_dropped_rows(getattr(datamodule_of(trainer), "dropped_rows", {}))
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                if self.resume:
                    logger.drop_after(trainer.global_step)
                logger.release()

    def _list_dropped_rows(self, dropped_rows: Mapping[str, list[dict[str, Any]]]) -> None:
        lines = [
            json.dumps({"split": split, **loss}, ensure_ascii=False) + "\n"
            for split in dropped_rows
            for loss in dropped_rows[split]
        ]
        if lines:
            write_text(self.run.skipped, "".join(lines))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last checkpoint, final metrics, and the model as a folder that transformers loads."""
        assert isinstance(pl_module, ProbSFTModule)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.flush(trainer)
        if trainer.is_global_zero:
            self._finish(trainer, pl_module, "stopped" if trainer.interrupted else "completed")
        there = trainer.strategy.broadcast(self.run.hf.exists())
        if self.export in ("final", "every") or (self.export == "best" and not there):
            self._export(trainer, self.run.hf)
            if trainer.is_global_zero:
                self._note_exported(trainer.global_step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that had nothing left to train may have ended before it said so, or before its model was exported."""
        if not self.resume or "status" in self.content or not trainer.is_global_zero or not self.run.record.exists():
            return
        assert isinstance(pl_module, ProbSFTModule)
        self.already_complete = True
        self.content = json.loads(self.run.record.read_text(encoding="utf-8"))
        if self.content.get("status") != "completed":
            self._finish(trainer, pl_module, "completed")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                self.on_resumed(trainer, dict(steps(self.run.checkpoints)), callback.best_step)
        if self.export == "best":
            wanted = not self.run.hf.exists()
        else:
            wanted = self.export != "none" and self.content.get("exported_step") != trainer.global_step
        if wanted:
            export_checkpoint(Path(str(trainer.ckpt_path)), self.run.hf, overwrite=True)
            self._note_exported(trainer.global_step)

    def on_saved(self, trainer: L.Trainer, step: int, best: bool) -> None:
        """Export along with a checkpoint, where the run is to do so."""
        if self.export == "best" and best:
            self._export(trainer, self.run.hf)
            if trainer.is_global_zero:
                self._note_exported(step)
        elif self.export == "every":
            self._export(trainer, self.run.hf_step(step))

    def on_resumed(self, trainer: L.Trainer, checkpoints: dict[int, Path], best: int) -> None:
        """Export what the run would have exported if it had not ended between a checkpoint and its export."""
        if not trainer.is_global_zero:
            return
        wanted: dict[int, Path] = {}
        if self.export == "every":
            wanted = {step: self.run.hf_step(step) for step in checkpoints if not self.run.hf_step(step).exists()}
        elif self.export == "best" and best in checkpoints and self.content.get("exported_step") != best:
            wanted = {best: self.run.hf}
        for step, out in wanted.items():
            try:
                export_checkpoint(checkpoints[step], out, overwrite=True)
            except UserError as error:
                rank_zero_warn(f"the model of step {step} is not exported: {error}")
            else:
                if self.export == "best":
                    self._note_exported(step)

    def _note_exported(self, step: int) -> None:
        """Which step's model lies in hf/."""
        self.content["exported_step"] = step
        write_json(self.run.record, self.content)

    def _export(self, trainer: L.Trainer, out: Path) -> None:
        """All ranks together; rank 0 writes."""
        module = trainer.lightning_module
        assert isinstance(module, ProbSFTModule)
        weights = whole_weights(module.model, sharded=sharding_of(trainer.strategy) is not None)
        failure = None
        if trainer.is_global_zero:
            try:
                export_model(
                    module.model,
                    datamodule_of(trainer).tokenizer,
                    out,
                    card=run_card(self.content, self.run.path.name),
                    weights=weights,
                    lora=module.lora,
                    base=module.source,
                )
            except UserError as error:
                failure = error.args
        if failure := trainer.strategy.broadcast(failure):
            raise UserError(*failure)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A run that fails says so in its record."""
        if trainer.is_global_zero and self.content.get("status") == "running":
            assert isinstance(pl_module, ProbSFTModule)
            stopped = isinstance(exception, StoppedBySignal)
            if not stopped:
                self.content["error"] = f"{type(exception).__name__}: {exception}"
            with contextlib.suppress(UserError):  # on a full disk; the exception has been on its way before
                self._finish(trainer, pl_module, "stopped" if stopped else "failed")

    def _finish(self, trainer: L.Trainer, pl_module: ProbSFTModule, status: str) -> None:
        self._list_dropped_rows(
            getattr(datamodule_of(trainer), "dropped_rows", {})
        )  # of a stream they are known only now
        metrics = {**(self.content.get("metrics") or {}), **self._metrics, **_metrics(trainer)}
        changes, throughput = _found(trainer, TokenChanges), _found(trainer, Throughput)
        timer, stop = _found(trainer, RunTimer), _found(trainer, EarlyStop)
        self.content.update(
            status=status,
            **(timer.facts() if timer else {}),
            stopped_early=stop.reason(trainer) if stop and status == "completed" else None,
            counts={
                "optimizer_steps": trainer.global_step,
                "epochs": _whole_epochs(trainer),
                "tokens": throughput.total_tokens if throughput else None,
                "supervised_tokens": throughput.total_supervised if throughput else None,
                "skipped_steps": pl_module.skipped_steps,
            },
            initial_metrics=pl_module.initial_metrics,
            metrics=metrics,
            forgetting=forgetting(pl_module.initial_metrics, metrics, pl_module.watched),
        )
        try:
            tokens = changes.write(self.run.tokens, trainer, pl_module) if changes else None
        except UserError as error:  # a full disk: the record and the model still have a chance
            rank_zero_warn(f"what training did to single tokens is not kept: {error}")
        else:
            self.content.update({} if tokens is None else {"tokens": tokens})
        write_json(self.run.record, self.content)

    def state_dict(self) -> dict[str, Any]:
        """The last validation, for a run that has nothing left to measure when it continues."""
        measured = {} if self._trainer is None else _metrics(self._trainer)
        return {"metrics": {k: v for k, v in {**self._metrics, **measured}.items() if k.startswith("val/")}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The last validation."""
        self._metrics = state_dict["metrics"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """What `export` needs to work from the checkpoint alone."""
        assert isinstance(pl_module, ProbSFTModule)
        tokenizer = datamodule_of(trainer).tokenizer
        card = run_card(self.content, self.run.path.name)
        checkpoint[CHECKPOINT_KEY] = checkpoint_entry(
            pl_module.model, tokenizer, card, pl_module.lora, pl_module.base_of_adapters, pl_module.new_tokens
        )


def _metrics(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _whole_epochs(trainer: L.Trainer) -> int:
    """Lightning counts one that was cut short as well."""
    in_epoch = None if getattr(datamodule_of(trainer), "streaming", False) else steps_in_epoch(trainer)
    return trainer.global_step // in_epoch if in_epoch else trainer.current_epoch


def _found(trainer: L.Trainer, kind: type[_T]) -> _T | None:
    """The run's callback of a kind."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def versions() -> dict[str, str]:
    """Of this package and what it stands on."""
    names = ("lit_probsft", "torch", "lightning", "transformers", "datasets", "torchmetrics", "jsonargparse", "peft")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_objective(module: ProbSFTModule) -> dict[str, Any]:
    """Class, arguments, and whether it is prior-leaning; an overridden `token_loss` is named too."""
    config = module.objective.as_config()
    try:
        config["lean"] = module.objective.lean()
    except (ValueError, ArithmeticError):  # no function of p alone, or its mass is beyond numbers
        config["lean"] = None
    if module.objective_state.capability is not None:
        config["mean_prob"] = module.objective_state.capability.mean_prob  # before training
        config["fitted"] = module.objective.fitted(module.objective_state.capability).as_config()
    if type(module).token_loss is not ProbSFTModule.token_loss:
        config["token_loss"] = f"{type(module).__module__}.{type(module).__qualname__}.token_loss"
    return config


def model_name(module: ProbSFTModule) -> str:
    """The source's name, or the class of a model that was handed in."""
    return type(module.model).__name__ if module.source is None else module.source.name


def commits(trainer: L.Trainer, module: ProbSFTModule) -> dict[str, str]:
    """The commits of all that was taken from the hub, by the argument that names it."""
    model, reference = module.source and module.source.commit, module.describe_reference().get("commit")
    return {
        **({} if model is None else {"model": model}),
        **({} if reference is None else {"model.reference": reference}),
        **getattr(datamodule_of(trainer), "commits", dict)(),
    }


def recipe(trainer: L.Trainer, module: ProbSFTModule) -> dict[str, Any]:
    """What decides the result beside objective, model and data."""
    optimizer: Any = trainer.optimizers[0]
    optimizer = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed's holds the one that was asked for
    chosen = {
        k: v for k, v in optimizer.defaults.items() if isinstance(v, int | float | tuple) and not isinstance(v, bool)
    }
    datamodule = datamodule_of(trainer)
    return {
        "optimizer": type(optimizer).__name__,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()},
        "schedule": asdict(module.schedule),
        "optimizer_steps": module.total_steps,
        "sequences_per_step": getattr(datamodule, "batch_size", 0)
        * trainer.accumulate_grad_batches
        * trainer.world_size,
        "gradient_clip_val": trainer.gradient_clip_val,
        "normalize": module.normalize,
        **({"lora": asdict(module.lora)} if module.lora else {}),
        "max_length": getattr(datamodule, "max_length", None),
        "precision": str(trainer.precision),
    }


def _device_name(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
