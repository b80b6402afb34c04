"""What accompanies a run: progress, throughput, the guard against steps that are not finite, the run's record, its export."""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_probsft.errors import UserError
from lit_probsft.export import CHECKPOINT_KEY, checkpoint_entry, export_model
from lit_probsft.module import ProbSFTModule
from lit_probsft.runs import RunFolder, write_atomically, write_json


class MetricsCSV(CSVLogger):
    """Lightning's CSV logger, for a file at a fixed place that a resumed run continues."""

    def __init__(self, run: RunFolder, resume: bool = False) -> None:
        super().__init__(save_dir=run.path, name="", version="", flush_logs_every_n_steps=20)
        self._resume = resume

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self.save_dir

    @property
    def experiment(self) -> ExperimentWriter:  # type: ignore[override]
        """The writer of the file; a writer on rank 0 only is Lightning's business."""
        if self._experiment is None:
            self._experiment = _ContinuingWriter(self.save_dir, self._resume)
        return self._experiment

    def drop_after(self, step: int) -> None:
        """Forget the rows past an optimizer step: a resumed run will make them again."""
        self.experiment.drop_after(step)  # type: ignore[attr-defined]


class _ContinuingWriter(ExperimentWriter):
    """Unlike its parent it makes no folder before there is something to write, and keeps what an earlier run has written."""

    def __init__(self, folder: str, resume: bool) -> None:
        self.metrics: list[dict[str, float]] = []
        self.metrics_keys: list[str] = []
        self.log_dir, self.metrics_file_path = folder, str(Path(folder) / self.NAME_METRICS_FILE)
        self._fs = _LocalFiles()
        self.hparams = {}
        if resume and Path(self.metrics_file_path).exists():
            with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def log_hparams(self, params: dict[str, Any]) -> None:
        pass  # config.yaml has them

    def drop_after(self, step: int) -> None:
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(float(row["step"])) < step]
        lines = [",".join(self.metrics_keys), *(",".join(row[key] or "" for key in self.metrics_keys) for row in rows)]
        write_atomically(path, "\n".join(lines) + "\n")

    def save(self) -> None:
        if self.metrics:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            super().save()


class _LocalFiles:
    """The two calls that the parent writer makes of a file system."""

    isfile = staticmethod(os.path.isfile)
    open = staticmethod(open)


class ProgressBar(TQDMProgressBar):
    """Loss, NLL, mean p, learning rate and tokens per second; no version number."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, int | str | float | dict[str, float]]:
        """The bar's numbers, under short names."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        short = {name.removeprefix("train/"): value for name, value in items.items()}
        return {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in short.items()}


class Throughput(Callback):
    """Logs `tokens_per_second`: real tokens, prompts included and padding not, over all ranks, between two logged steps.

    Time spent in validation and saving is left out; the first step, which pays for warming up, too.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._started: float | None = None
        self.total_tokens = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it, count the batch."""
        tokens = int(batch["num_tokens"]) * trainer.world_size
        self.total_tokens += tokens
        if self._started is None or trainer.global_step <= 1:
            return
        self._tokens += tokens
        self._seconds += time.perf_counter() - self._started
        if self._seconds > 0:
            pl_module.log("tokens_per_second", self._tokens / self._seconds, prog_bar=True)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._tokens, self._seconds = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """The total goes on after a resume."""
        return {"total_tokens": self.total_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The total goes on after a resume."""
        self.total_tokens = state_dict["total_tokens"]


class NonFiniteGuard(Callback):
    """Ends the run after too many skipped optimizer steps in a row, with a checkpoint of the last good weights.

    A skipped step leaves weights and moments untouched, so the weights at that moment are the last good ones.
    """

    def __init__(self, limit: int = 10) -> None:
        self.limit = limit
        self._in_a_row = 0
        self._steps_seen = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        assert isinstance(pl_module, ProbSFTModule)
        if trainer.global_step == self._steps_seen:
            return
        self._steps_seen = trainer.global_step
        self._in_a_row = self._in_a_row + 1 if pl_module.last_step_skipped else 0
        if self._in_a_row == 1:
            rank_zero_warn(f"optimizer step {trainer.global_step}: loss or gradient is not finite, the step is skipped")
        if self._in_a_row < self.limit:
            return
        where = ""
        saver = trainer.checkpoint_callback
        if isinstance(saver, ModelCheckpoint) and saver.dirpath:
            path = Path(saver.dirpath) / "last.ckpt"
            trainer.save_checkpoint(path)
            where = f"; the last good weights are in {path}"
        raise UserError(
            f"training: expected a finite loss and gradient, {self.limit} optimizer steps in a row had none (up to step "
            f"{trainer.global_step}): lower the learning rate, or look at the data of these steps{where}"
        )


class RunRecord(Callback):
    """Claims the run's folder once data and model are there, keeps `run.json`, and exports the model at the end."""

    def __init__(self, run: RunFolder, *, resume: bool, config: str, context: Mapping[str, Any]) -> None:
        self.run, self.resume, self.config_text = run, resume, config
        self.content: dict[str, Any] = dict(context)
        self._started = time.time()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Everything a user could have got wrong has been read by now, so that nothing half-written can be left behind."""
        assert isinstance(pl_module, ProbSFTModule)
        if not trainer.is_global_zero:
            return
        self.run.claim(resume=self.resume)
        write_atomically(self.run.config, self.config_text)
        self.content.update(
            status="running",
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._started)),
            versions=versions(),
            machine={
                "host": platform.node(),
                "platform": platform.platform(),
                "device": _device_name(trainer),
                "world_size": trainer.world_size,
                "precision": str(trainer.precision),
            },
            objective=describe_objective(pl_module),
            model={"name": model_name(pl_module), **_model_facts(pl_module)},
            data=dict(getattr(trainer.datamodule, "report", {})),  # type: ignore[attr-defined]
            data_fingerprint=getattr(trainer.datamodule, "fingerprint", None),  # type: ignore[attr-defined]
            recipe=recipe(trainer, pl_module),
        )
        write_json(self.run.record, self.content)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """On resume, drop the rows that will be made again."""
        if self.resume and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, MetricsCSV):
                    logger.drop_after(trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Final metrics, and the model as a folder that transformers loads."""
        assert isinstance(pl_module, ProbSFTModule)
        if not trainer.is_global_zero:
            return
        self._finish(trainer, pl_module, "stopped" if trainer.interrupted else "completed")
        assert pl_module.model is not None
        export_model(
            pl_module.model,
            trainer.datamodule.tokenizer,  # type: ignore[attr-defined]
            self.run.hf,
            card=run_card(self.content, self.run.path.name),
        )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A run that fails says so in its record."""
        if trainer.is_global_zero and self.content.get("status") == "running":
            assert isinstance(pl_module, ProbSFTModule)
            self._finish(trainer, pl_module, "failed")
            write_json(self.run.record, {**self.content, "error": f"{type(exception).__name__}: {exception}"})

    def _finish(self, trainer: L.Trainer, pl_module: ProbSFTModule, status: str) -> None:
        throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
        self.content.update(
            status=status,
            seconds=round(time.time() - self._started, 1),
            counts={
                "optimizer_steps": trainer.global_step,
                "epochs": trainer.current_epoch,
                "tokens": throughput.total_tokens if throughput else None,
                "skipped_steps": pl_module.skipped_steps,
            },
            initial_metrics=pl_module.initial_metrics,
            metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        )
        write_json(self.run.record, self.content)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What `export` needs to work from the checkpoint alone."""
        assert isinstance(pl_module, ProbSFTModule)
        assert pl_module.model is not None
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        card = run_card(self.content, self.run.path.name)
        checkpoint[CHECKPOINT_KEY] = checkpoint_entry(pl_module.model, tokenizer, card)


class PredictionWriter(Callback):
    """Writes the answers of `predict` to predictions.jsonl: index, prompt, answer, reference; in the order of the rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Decode a batch."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        texts = datamodule.tokenizer.batch_decode(outputs["answers"].tolist(), skip_special_tokens=True)
        for index, text in zip(outputs["documents"].tolist(), texts, strict=True):
            self._rows.append({**datamodule.prediction_row(index), "answer": text})

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the ranks, write once."""
        rows = self._rows
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, rows)
            rows = [row for part in parts for row in part]
        if trainer.is_global_zero:
            rows = sorted({row["index"]: row for row in rows}.values(), key=lambda row: row["index"])
            write_atomically(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            rank_zero_info(f"{len(rows)} answers in {self.path}")


def versions() -> dict[str, str]:
    """Of this package and what it stands on."""
    names = ("lit_probsft", "torch", "lightning", "transformers", "datasets", "torchmetrics", "jsonargparse")
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
    except ValueError:
        config["lean"] = None
    if type(module).token_loss is not ProbSFTModule.token_loss:
        config["token_loss"] = f"{type(module).__module__}.{type(module).__qualname__}.token_loss"
    return config


def model_name(module: ProbSFTModule) -> str:
    """The source's name, or the class of a model that was handed in."""
    return type(module.model).__name__ if module.source is None else module.source.name


def _model_facts(module: ProbSFTModule) -> Mapping[str, Any]:
    from lit_probsft.model import describe

    assert module.model is not None
    return describe(module.model)


def recipe(trainer: L.Trainer, module: ProbSFTModule) -> dict[str, Any]:
    """What decides the result beside objective, model and data."""
    optimizer = trainer.optimizers[0]
    chosen = {k: v for k, v in optimizer.defaults.items() if isinstance(v, int | float | tuple) and not isinstance(v, bool)}
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    return {
        "optimizer": type(optimizer).__name__,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()},
        "schedule": {k: getattr(module.schedule, k) for k in ("decay", "warmup", "final")},
        "optimizer_steps": module.total_steps,
        "sequences_per_step": getattr(datamodule, "batch_size", 0) * trainer.accumulate_grad_batches * trainer.world_size,
        "gradient_clip_val": trainer.gradient_clip_val,
        "normalize": module.normalize,
        "max_length": getattr(datamodule, "max_length", None),
        "precision": str(trainer.precision),
    }


def run_card(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The part of a run's record that its model card shows."""
    return {
        "name": name,
        "base_model": (content.get("model") or {}).get("name"),
        "objective": {k: v for k, v in (content.get("objective") or {}).items() if v is not None},
        "recipe": content.get("recipe"),
        "data": {"fingerprint": content.get("data_fingerprint"), **_split_counts(content.get("data") or {})},
        "metrics": content.get("metrics"),
    }


def _split_counts(report: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("source", "kept", "dropped", "truncated", "tokens", "supervised_tokens")
    return {split: {k: facts[k] for k in wanted if k in facts} for split, facts in report.items() if isinstance(facts, dict)}


def _device_name(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
