"""`fit --dry_run`: builds everything, makes two optimizer steps and says what the run needs; writes nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_probsft.cli.fit import ProbSFTCLI, run_training_command
from lit_probsft.cli.trial_steps import TrialSteps
from lit_probsft.data import InstructionDataModule
from lit_probsft.data.batches.packing import PackedPlan
from lit_probsft.data.batches.store import Documents
from lit_probsft.errors import UserError
from lit_probsft.run.summary import duration
from lit_probsft.training.early_stopping import EarlyStop
from lit_probsft.training.lightning_internals import between_steps
from lit_probsft.training.probing import Subset
from lit_probsft.training.run_length import steps_in_epoch, total_steps

_PROBE_ROWS = 2
"""Documents to measure the capability on, for objectives that need it."""


class Trial(Callback):
    """Times each optimizer step, records the peak memory, and ends the run after two steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak = 0
        self.validated = False
        self._step_began: float | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    @override
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self._step_began is None:
            self._step_began = time.perf_counter()

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not between_steps(trainer) or self._step_began is None:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self.seconds.append(time.perf_counter() - self._step_began)
        self._step_began = None
        trainer.should_stop = len(self.seconds) == 2

    @override
    def on_validation_batch_end(self, *_: Any) -> None:
        self.validated = True

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = trainer.strategy.root_device
        peak = torch.tensor(float(_peak(device)), device=device)
        self.peak = int(trainer.strategy.reduce(peak, reduce_op="max"))


class DryRunCLI(ProbSFTCLI):
    """Reads a configuration as `fit` does, without the run's loggers, callbacks and checkpoints."""

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.command]
        if config.resume or config.get("ckpt_path"):
            raise UserError("--dry_run", "cannot be combined with --resume or --ckpt_path")
        config.overwrite = True  # lets an existing run pass the check; nothing is overwritten
        super().before_instantiate_classes()
        trainer = config.trainer
        self._limit = trainer.limit_train_batches
        self._validate_every = None
        trainer.limit_train_batches = trainer.min_epochs = trainer.min_steps = trainer.max_time = None
        trainer.logger = trainer.callbacks = None
        trainer.fast_dev_run, trainer.overfit_batches, trainer.num_sanity_val_steps = False, 0.0, 0
        trainer.val_check_interval, trainer.check_val_every_n_epoch = 1.0, 1
        trainer.enable_checkpointing = trainer.enable_progress_bar = trainer.use_distributed_sampler = False
        if trainer.limit_val_batches != 0:
            trainer.limit_val_batches = 1

    @override
    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        data = self.datamodule
        if not isinstance(data, InstructionDataModule):
            raise UserError("--dry_run", f"expected an InstructionDataModule, got {type(data).__name__}")
        self.model.probe_rows = min(self.model.probe_rows, _PROBE_ROWS)
        validation = data.val_dataloader

        def train_dataloader() -> DataLoader[Any]:
            return DataLoader(self.trial_steps.batches, batch_size=1, collate_fn=itemgetter(0))  # type: ignore[arg-type]

        def val_dataloader() -> Any:
            if "validation" not in data.report:
                return validation()
            splits = ["validation", *(f"watch.{name}" for name in data.watched)]
            loaders = [data.loader_over(_longest(data.documents(split), data)) for split in splits]
            return loaders if len(loaders) > 1 else loaders[0]

        data.train_dataloader, data.val_dataloader = train_dataloader, val_dataloader  # type: ignore[method-assign,assignment]

    @cached_property
    def trial_steps(self) -> TrialSteps:
        """The steps to make, once the data are set up."""
        return TrialSteps(self.datamodule)

    @override
    def _callbacks(self, config: Any, given: list[Callback]) -> list[Callback]:
        self.trial = Trial()
        # These refuse options that could never stop a run, and questions that the model cannot be asked.
        callbacks = [self.trial, EarlyStop(config.early_stopping)]
        if config.evaluation.tasks:
            from lit_probsft.evaluation.callback import Questions

            callbacks.append(Questions(config.evaluation, config.checkpoints.best))
        return callbacks

    @override
    def after_fit(self) -> None:
        if not self.trainer.is_global_zero:
            return
        self.trainer.limit_train_batches = 1.0 if self._limit is None else self._limit
        self.facts = self._facts(steps_in_epoch(self.trainer), total_steps(self.trainer))
        print("\n".join(["", *self._summary(self.facts)]))

    def _facts(self, in_epoch: int | None, total: int) -> dict[str, Any]:
        counts = self.trial_steps.plan.window_counts(0)
        documents, parameters = self.trial_steps.documents, list(self.model.model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return {
            "parameters": sum(map(_numel, parameters)),
            "trained": sum(map(_numel, trained)),
            "documents": len(documents),
            "tokens": int(documents.lengths.sum()),
            "supervised": int(documents.supervised.sum()),
            "padding": self.trial_steps.padding(),
            "steps_in_epoch": None if self.datamodule.streaming else in_epoch,
            "steps": total,
            "tokens_per_step": float(counts[:, 2].mean()),
            "supervised_per_step": float(counts[:, 0].mean()),
            "longest": int(documents.lengths.max()),
            "weights": sum(map(_bytes, parameters)),
            "gradients": sum(map(_bytes, trained)),
            "optimizer": _state_bytes(self.trainer.optimizers[0]),
            "peak": self.trial.peak,
            "seconds_per_step": self.trial.seconds[-1],
            "seconds": self.trial.seconds[-1] * total,
        }

    def _summary(self, f: dict[str, Any]) -> list[str]:
        cuda, world = self.trainer.strategy.root_device.type == "cuda", self.trainer.world_size
        first = "the first " if self.datamodule.streaming else ""
        epoch = "" if f["steps_in_epoch"] is None else f"{f['steps_in_epoch']:,} per epoch, "
        each = f" on each of {world} processes" if world > 1 else ""
        peak = "GPU memory of tensors" if cuda else "memory of the whole process, Python included"
        largest = "fullest packs" if isinstance(self.trial_steps.plan, PackedPlan) else "longest documents"
        validated = " and a validation batch of the longest" if self.trial.validated else ""
        timed = "a step of average size" if len(self.trial.seconds) > 1 else "the largest step, warm-up included"
        exists = " exists: pass --resume or --overwrite;" if self.run.in_use else ":"
        return [
            f"model:   {f['parameters']:,} parameters, {f['trained']:,} trained",
            f"data:    {first}{f['documents']:,} documents, {f['tokens']:,} tokens, {f['supervised']:,} supervised; "
            f"the longest document has {f['longest']:,} tokens",
            f"steps:   {epoch}{f['steps']:,} in total; on average {f['tokens_per_step']:,.0f} tokens per step, "
            f"{f['supervised_per_step']:,.0f} supervised; {f['padding']:.1%} padding",
            f"memory:  weights {_size(f['weights'])}, gradients {_size(f['gradients'])}, optimizer "
            f"{_size(f['optimizer'])}{each}",
            f"         peak {_size(f['peak'])} ({peak}) in a step over the {largest}{validated}",
            f"time:    about {duration(f['seconds'])} without validation and saving: "
            f"{duration(f['seconds_per_step'])} for {timed}",
            f"run:     {self.run.path}{exists} nothing was written",
        ]


def _longest(documents: Documents, data: InstructionDataModule) -> Documents:
    """The documents of the largest validation batch."""
    count = data.eval_batch_size * data.loader_over(documents).plan.world_size
    return Subset(documents, np.argsort(-documents.lengths, kind="stable")[:count].tolist())


def _peak(device: torch.device) -> int:
    """Peak memory in bytes: of the tensors on a CUDA device, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name != "posix":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _numel(parameter: torch.nn.Parameter) -> int:
    """Elements of the whole parameter, also under ZeRO-3, which leaves an empty tensor in its place."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _bytes(tensor: Any) -> int:
    """Bytes of this rank's part of a tensor."""
    local = getattr(tensor, "ds_tensor", None)
    local = getattr(tensor, "_local_tensor", tensor) if local is None else local
    return int(local.numel() * local.element_size())


def _state_bytes(optimizer: Any) -> int:
    optimizer = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed wraps it
    return sum(_bytes(v) for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def run_dry_run(args: Sequence[str]) -> ProbSFTCLI:
    """Run `fit --dry_run`."""
    return run_training_command(args, DryRunCLI)
