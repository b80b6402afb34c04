"""Evaluation during training: `evaluation` of a configuration."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from lit_probsft.errors import UserError, errors_within
from lit_probsft.evaluation.evaluation import Evaluation
from lit_probsft.evaluation.generation.local import LocalBackend
from lit_probsft.evaluation.options import EvaluationOptions
from lit_probsft.evaluation.tasks.registry import tasks_named
from lit_probsft.parallel.strategies import sharding_of
from lit_probsft.run.record import RunRecord
from lit_probsft.run.timer import RunTimer
from lit_probsft.storage.atomic import remove, write_text
from lit_probsft.storage.ranks import gather_objects
from lit_probsft.training.callbacks import datamodule_of
from lit_probsft.training.lightning_internals import may_stop_early
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.monitor import VAL_NLL, Monitor
from lit_probsft.training.step_end import StepEnd
from lit_probsft.training.trainer_state import has_validation, run_ends, validates

_NOT_SCORES = ("accuracy_se", "cut_off", "no_answer", "tokens")
_OF_QUESTIONS = ("grades", "values", "groups")
"""Numbers of single questions, which are not kept: the answers are."""
_LINE_SECONDS = 30.0
"""Between two lines of progress."""


class Questions(Callback):
    """Loads the tasks and makes their prompts before training starts, so that mistakes end the run there.

    Args:
        options: of the evaluation.
        best: the metric that decides which checkpoint is the best.
    """

    def __init__(self, options: EvaluationOptions, best: str = VAL_NLL) -> None:
        self.options, self.best, self.settings = options, best, options.settings()
        self.fingerprint = ""
        """A digest of the prompts and of how they are answered. Numbers of different ones cannot be compared."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        with errors_within("evaluation"):
            self._tasks = tasks_named(self.options.tasks or [], self.options.data_dir)
        if self.best == VAL_NLL:
            return
        task, _, score = self.best.removeprefix("eval/").rpartition("/")
        if task not in self._tasks or score in _NOT_SCORES:
            known = " or ".join(f"eval/{name}/accuracy" for name in self._tasks)
            raise UserError("checkpoints.best", f"expected a score of a task, such as {known}, got {self.best}")
        if self.options.interval is None and not has_validation(trainer):
            problem = f"expected steps or epochs, since checkpoints.best is {self.best} and there is no validation data"
            raise UserError("evaluation.every", f"{problem}; got validation")

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ProbSFTModule)
        length = getattr(pl_module.model.config.get_text_config(), "max_position_embeddings", None)
        with errors_within("evaluation.tasks"):
            self.evaluation = Evaluation(self._tasks, self.settings, datamodule_of(trainer).tokenizer, length)
        for task, count in Counter(row["task"] for row in self.evaluation.too_long).items():
            found = f"{count} of {len(self.evaluation.questions[task])} prompts of {task} are longer"
            if count == len(self.evaluation.questions[task]):
                raise UserError("evaluation.tasks", f"expected prompts of fewer than {length} tokens, {found}")
            rank_zero_warn(f"evaluation: the model has {length} positions, {found} and count as wrong")
        asked = repr([self.options.top_p, self.evaluation.requests])
        self.fingerprint = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class TrainingEvaluation(Questions, StepEnd):
    """Evaluates the model before the first step, at an interval and after the last step.

    The ranks share the questions. Weights, modes and random state of training stay as they are. The numbers go to the
    loggers, to `trainer.callback_metrics` and to run.json, the graded answers to evaluation/step-N.jsonl. Comes before
    the `RunRecord` among the callbacks.

    Args:
        options: of the evaluation.
        record: of the run.
        timer: of the run.
        best: the metric that decides which checkpoint is the best.
    """

    def __init__(self, options: EvaluationOptions, record: RunRecord, timer: RunTimer, best: str = VAL_NLL) -> None:
        super().__init__(options, best)
        self._record, self._timer, self._of = record, timer, ""
        self._backend: LocalBackend | None = None
        self._unwritten: dict[int, list[dict[str, Any]]] = {}  # until the run folder is claimed
        self._first: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        """The optimizer step of the last evaluation; -1 without one."""
        return -1 if self._last is None else int(self._last["step"])

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of the last evaluation, as they are logged."""
        return {} if self._last is None else _metrics(self._last["tasks"])

    @property
    def monitor(self) -> Monitor:
        """The metric that decides which checkpoint is the best."""
        return Monitor() if self.best == VAL_NLL else _Score(self)

    # --- when

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interval, step = self.options.interval, trainer.global_step
        if interval is not None:
            interval.check(trainer)
        elif not validates(trainer):
            rank_zero_info("evaluation.every: without validation data, only before and after training")
        if self._of != self.fingerprint:
            if self._last is not None:
                rank_zero_warn("evaluation: options or questions have changed since the checkpoint")
            self._first = self._last = None
        if step == 0:
            self._evaluate(trainer, pl_module)
        elif trainer.is_global_zero:
            for path in self._record.run.evaluation.glob("step-*.jsonl"):
                if path.name > self._path(step).name:  # this run takes that step again
                    remove(path)
        trainer.callback_metrics.update(self._tensors())
        self._note()

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.options.interval is None:
            self._evaluate(trainer, pl_module)

    @override
    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interval = self.options.interval
        ends = run_ends(trainer) or (trainer.should_stop and may_stop_early(trainer))
        if (ends or interval.due(trainer)) if interval is not None else (ends and not validates(trainer)):
            self._evaluate(trainer, pl_module)
        self._write_rows()

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluate(trainer, pl_module)  # early stopping ends a run after `on_step_end`

    # --- what

    def _evaluate(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Evaluate the model, unless that is done for the present step."""
        assert isinstance(module, ProbSFTModule)
        if self.step == trainer.global_step:
            return
        when = f"after step {trainer.global_step}" if trainer.global_step else "before training"
        asked = len(self.evaluation.requests)
        rank_zero_info(f"evaluation {when}: {asked} question{'s' * (asked != 1)}")
        with self._timer.evaluating():
            rows = self._rows(trainer, module)
            found = self.evaluation.numbers(rows) if trainer.is_global_zero else {}
            kept = {task: {k: v for k, v in of.items() if k not in _OF_QUESTIONS} for task, of in found.items()}
            kept = trainer.strategy.broadcast(kept)
        self._last = {"step": trainer.global_step, "tasks": kept}
        self._first = self._first or (None if self.step else self._last)
        if self.best not in (VAL_NLL, *self.metrics):
            known = ", ".join(name for name in self.metrics if name.rpartition("/")[2] not in _NOT_SCORES)
            raise UserError("checkpoints.best", f"expected one of {known}, got {self.best}")
        trainer.callback_metrics.update(self._tensors())
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics, step=max(self.step - 1, 0))  # as Lightning numbers the step's other rows
            logger.save()
        if trainer.is_global_zero:
            self._unwritten[self.step] = rows
        self._write_rows()  # before the checkpoint, after which this evaluation is not repeated
        self._note()
        accuracies = ", ".join(f"{task} {100 * of['accuracy']['mean']:.1f} %" for task, of in kept.items())
        rank_zero_info(f"evaluation {when}: {accuracies}")

    def _rows(self, trainer: L.Trainer, module: ProbSFTModule) -> list[dict[str, Any]]:
        """The graded answers of all ranks: questions that are too long, then the others in their order."""
        evaluation, world = self.evaluation, trainer.world_size
        autocast = trainer.precision_plugin.forward_context() if "mixed" in str(trainer.precision) else None
        self._backend = self._backend or LocalBackend(
            module.model,
            datamodule_of(trainer).tokenizer,
            top_p=self.options.top_p,
            synced=world > 1 and sharding_of(trainer.strategy) is not None,
            batch_tokens=self.options.batch_tokens,
        )
        requests = evaluation.requests[trainer.global_rank :: world]
        mine, asked = [], sum(len(request.draws) for request in requests)
        began = said = time.monotonic()
        with (
            isolate_rng(),
            torch.inference_mode(False),  # training must be able to use what the model keeps, such as rotary tables
            autocast or contextlib.nullcontext(),
        ):
            for answer in self._backend.answer(requests):
                mine.append((answer.index, answer.sample, evaluation.grade(answer)))
                if (now := time.monotonic()) - said > _LINE_SECONDS:
                    said, left = now, timedelta(seconds=round((now - began) * (asked / len(mine) - 1)))
                    rank_zero_info(f"evaluation: {len(mine)} of {asked} answers, about {left} left")
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()  # libraries such as NCCL allocate memory of their own
        graded = sorted((each for part in gather_objects(mine) for each in part), key=lambda each: each[:2])
        return [*evaluation.too_long, *(row for *_, row in graded)]

    def _note(self) -> None:
        """Put the numbers into run.json, which is written when training ends."""
        settings = {**asdict(self.options), "seed": self.settings.seed}
        self._record.content["evaluation"] = {"settings": settings, "first": self._first, "last": self._last}

    def _write_rows(self) -> None:
        while self._record.claimed and self._unwritten:
            step, rows = self._unwritten.popitem()
            self._record.run.check_present()
            write_text(self._path(step), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _path(self, step: int) -> Path:
        return self._record.run.evaluation / f"step-{step:08d}.jsonl"

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.metrics.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"of": self.fingerprint, "first": self._first, "last": self._last}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._of, self._first, self._last = state_dict["of"], state_dict["first"], state_dict["last"]


class _Score(Monitor):
    """A score of the evaluation, the higher the better."""

    higher_is_better = True

    def __init__(self, evaluation: TrainingEvaluation) -> None:
        self.name, self._evaluation = evaluation.best, evaluation

    @override
    def value(self, trainer: L.Trainer) -> float | None:
        return self._evaluation.metrics.get(self.name) if self._evaluation.step == trainer.global_step else None

    @override
    def measured_on(self, trainer: L.Trainer) -> str | None:
        return f"{self.name} {self._evaluation.fingerprint}"


def _metrics(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of each task under the names that they are logged with, without those that are not known."""
    found: dict[str, float] = {}
    for task, of in tasks.items():
        scores = {name: score["mean"] for name, score in of["scores"].items()}
        shares = {"cut_off": of["cut_off"], "no_answer": of["no_answer"], "tokens": of["tokens"]["mean"]}
        values = {"accuracy": of["accuracy"]["mean"], "accuracy_se": of["accuracy"]["se"], **shares, **scores}
        found |= {f"eval/{task}/{name}": float(value) for name, value in values.items() if value is not None}
    return found
