"""Evaluation during training: `evaluation` of a configuration."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.evaluation.evaluation import Evaluation
from lit_probsft.evaluation.generation.local import LocalBackend
from lit_probsft.evaluation.options import EvaluationOptions
from lit_probsft.evaluation.settings import Settings
from lit_probsft.evaluation.tasks.registry import tasks_named
from lit_probsft.model.modes import evaluation_mode
from lit_probsft.parallel.seeds import run_seed
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


class Questions(Callback):
    """Loads the tasks and makes their prompts before training starts, so that mistakes end the run there.

    Args:
        options: of the evaluation.
        best: the metric that decides which checkpoint is the best.
    """

    def __init__(self, options: EvaluationOptions, best: str = VAL_NLL) -> None:
        self.options, self.best = options, best
        names = ("limit", "n", "temperature", "top_p", "max_new_tokens", "system")
        self.settings = Settings(**{name: getattr(options, name) for name in names}, seed=run_seed(options.seed))
        self.fingerprint = ""
        """A digest of the prompts and of how they are answered. Numbers of different ones cannot be compared."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        with _flags_as_options():
            self._tasks = tasks_named(self.options.tasks, self.options.data_dir)
        if self.best == VAL_NLL:
            return
        task, _, score = self.best.removeprefix("eval/").rpartition("/")
        if task not in self._tasks or score in _NOT_SCORES:
            known = [f"eval/{name}/accuracy" for name in self._tasks]
            raise UserError("checkpoints.best", f"expected such as {' or '.join(known)}, got {self.best}")
        if self.options.interval is None and not has_validation(trainer):
            problem = f"expected an interval with checkpoints.best: {self.best}, since there is no validation"
            raise UserError("evaluation.every", f"{problem}, got validation")

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ProbSFTModule)
        positions = getattr(pl_module.model.config.get_text_config(), "max_position_embeddings", None)
        with _flags_as_options():
            self.evaluation = Evaluation(self._tasks, self.settings, datamodule_of(trainer).tokenizer, positions)
        for task, count in Counter(
            task for task, _ in {(row["task"], row["question"]) for row in self.evaluation.too_long}
        ).items():
            of = len(self.evaluation.questions[task])
            if count == of:
                problem = f"expected prompts that fit the model's {positions} positions, all {of} of {task} are longer"
                raise UserError("evaluation.tasks", problem)
            rank_zero_warn(
                f"{task}: {count} of {of} prompts do not fit the model's {positions} positions: graded as wrong"
            )
        requests = self.evaluation.requests
        asked = [(list(each.prompt), [*map(asdict, each.draws)], each.max_new_tokens) for each in requests]
        self.fingerprint = hashlib.sha256(json.dumps([self.options.top_p, asked]).encode()).hexdigest()[:16]


class TrainingEvaluation(Questions, StepEnd):
    """Evaluates the model before the first step, at an interval and after the last step.

    The ranks share the questions. The weights, the modes and the random state of training stay as they are. The numbers
    go to the loggers, to `trainer.callback_metrics` and to run.json, the graded answers to evaluation/step-N.jsonl. Comes
    before the `RunRecord` among the callbacks.

    Args:
        options: of the evaluation.
        record: of the run.
        timer: of the run.
        best: the metric that decides which checkpoint is the best.
    """

    def __init__(self, options: EvaluationOptions, record: RunRecord, timer: RunTimer, best: str = VAL_NLL) -> None:
        super().__init__(options, best)
        self._record, self._timer = record, timer
        self._unwritten: dict[int, list[dict[str, Any]]] = {}  # the run folder may not be claimed yet
        self._of = ""
        self._forget()

    def _forget(self) -> None:
        self.step = -1
        """The optimizer step of the last evaluation."""
        self.metrics: dict[str, float] = {}
        """Of the last evaluation, as the loggers have them."""
        self._first: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None

    @property
    def monitor(self) -> Monitor:
        """The metric `best`, as the checkpoints and early stopping watch it."""
        return Monitor() if self.best == VAL_NLL else _Score(self)

    # --- when

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        interval = self.options.interval
        if interval is not None:
            interval.check(trainer)
        elif not validates(trainer):
            rank_zero_info("evaluation: without validation, the model is evaluated before and after training only")
        if trainer.is_global_zero and trainer.ckpt_path:
            for path in self._record.run.evaluation.glob("step-*.jsonl"):
                if path.stem > self._path(trainer.global_step).stem:  # this run takes that step again
                    remove(path)
        if self._of != self.fingerprint:
            if self._last is not None:
                rank_zero_warn("evaluation: its options or questions have changed since the checkpoint")
            self._forget()
        if trainer.global_step == 0:
            self._evaluate(trainer, pl_module)
        trainer.callback_metrics.update(_tensors(self.metrics))
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
        if not trainer.interrupted:  # early stopping ends a run after `on_step_end`
            self._evaluate(trainer, pl_module)
        self._write_rows()

    # --- what

    def _evaluate(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Evaluate the model, unless that is done for the present step."""
        assert isinstance(module, ProbSFTModule)
        if self.step == trainer.global_step:
            return
        when = f"after step {trainer.global_step}" if trainer.global_step else "before training"
        rank_zero_info(f"evaluation {when}: {len(self.evaluation.requests)} questions")
        with self._timer.evaluating():
            rows = self._rows(trainer, module)
            numbers = self.evaluation.numbers(rows) if trainer.is_global_zero else {}
            numbers = trainer.strategy.broadcast(numbers)
        kept = {task: {name: of[name] for name in of if name != "grades"} for task, of in numbers.items()}
        self.step, self.metrics = trainer.global_step, _metrics(kept)
        self._last = {"step": self.step, "tasks": kept}
        if self._first is None and not self.step:
            self._first = self._last
        rank_zero_info(f"evaluation {when}: {', '.join(_short(task, of) for task, of in kept.items())}")
        if self.best not in (VAL_NLL, *self.metrics):
            known = [name for name in self.metrics if name.rpartition("/")[2] not in _NOT_SCORES]
            raise UserError("checkpoints.best", f"expected one of {', '.join(known)}, got {self.best}")
        trainer.callback_metrics.update(_tensors(self.metrics))
        for logger in trainer.loggers:
            logger.log_metrics(self.metrics, step=max(self.step - 1, 0))  # as Lightning numbers the step's other rows
            logger.save()
        if trainer.is_global_zero:
            self._unwritten[self.step] = rows
        self._note()

    def _rows(self, trainer: L.Trainer, module: ProbSFTModule) -> list[dict[str, Any]]:
        """The graded answers of all ranks, in the order of the questions."""
        evaluation, world = self.evaluation, trainer.world_size
        options: dict[str, Any] = {"batch_tokens": self.options.batch_tokens} if self.options.batch_tokens else {}
        mixed = "mixed" in str(trainer.precision)
        with (
            isolate_rng(),
            torch.inference_mode(False),  # what the model keeps, such as rotary tables, must be of use in training
            torch.no_grad(),
            evaluation_mode(module.model),
            trainer.precision_plugin.forward_context() if mixed else contextlib.nullcontext(),
        ):
            backend = LocalBackend(
                module.model,
                datamodule_of(trainer).tokenizer,
                top_p=self.options.top_p,
                synced=world > 1 and sharding_of(trainer.strategy) is not None,
                **options,
            )
            asked = evaluation.requests[trainer.global_rank :: world]
            mine = [evaluation.grade(answer) for answer in backend.answer(asked)]
            backend.close()
        named = [(task, question.id) for task, questions in evaluation.questions.items() for question in questions]
        place = {name: number for number, name in enumerate(named)}
        rows = [*evaluation.too_long, *(row for part in gather_objects(mine) for row in part)]
        return sorted(rows, key=lambda row: (place[row["task"], row["question"]], row["sample"]))

    def _note(self) -> None:
        """Put the numbers into run.json."""
        settings = {**asdict(self.options), "seed": self.settings.seed}
        self._record.content["evaluation"] = {"settings": settings, "first": self._first, "last": self._last}

    def _write_rows(self) -> None:
        """Write the answers of evaluations since the last call, once the run folder is claimed."""
        while self._record.claimed and self._unwritten:
            step, rows = self._unwritten.popitem()
            self._record.run.check_present()
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            write_text(self._path(step), "".join(lines))

    def _path(self, step: int) -> Path:
        return self._record.run.evaluation / f"step-{step:08d}.jsonl"

    @override
    def state_dict(self) -> dict[str, Any]:
        numbers = {"metrics": self.metrics, "first": self._first, "last": self._last}
        return {"step": self.step, "of": self.fingerprint, **numbers}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self._of, self.metrics = state_dict["step"], state_dict["of"], state_dict["metrics"]
        self._first, self._last = state_dict["first"], state_dict["last"]


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
    """The numbers of each task under the names that they are logged with; those that are not known are left out."""
    found = {}
    for task, numbers in tasks.items():
        accuracy, scores = numbers["accuracy"], numbers["scores"]
        values = {
            "accuracy": accuracy["mean"],
            "accuracy_se": accuracy["se"],
            "cut_off": numbers["cut_off"],
            "no_answer": numbers["no_answer"],
            "tokens": numbers["tokens"]["mean"],
            **{name: score["mean"] for name, score in scores.items()},
        }
        found |= {f"eval/{task}/{name}": float(value) for name, value in values.items() if value is not None}
    return found


def _tensors(metrics: Mapping[str, float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}


def _short(task: str, numbers: Mapping[str, Any]) -> str:
    """One task's result, such as `gsm8k 31.5 ± 1.3 %`."""
    mean, se = numbers["accuracy"]["mean"], numbers["accuracy"]["se"]
    return f"{task} {100 * mean:.1f}{'' if se is None else f' ± {100 * se:.1f}'} %"


@contextlib.contextmanager
def _flags_as_options() -> Iterator[None]:
    """Let errors name the options of a configuration, not the flags of the command `evaluate`."""
    try:
        yield
    except UserError as error:
        name = error.argument.removeprefix("--").replace("-", "_")
        if name not in {field.name for field in fields(EvaluationOptions)}:
            raise
        raise UserError(f"evaluation.{name}", error.problem) from error.__cause__
