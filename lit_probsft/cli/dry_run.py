"""`fit --dry_run`: everything is built and one optimizer step is made over the longest documents, so that what a run
needs is known before it begins. Nothing is written into the run's folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from lit_probsft.cli.fit import ProbSFTCLI, run_training_command
from lit_probsft.data import InstructionDataModule
from lit_probsft.data.batches.loader import PlanLoader
from lit_probsft.data.batches.packing import PackedPlan
from lit_probsft.data.batches.plan import MicroBatch, Plan
from lit_probsft.data.batches.store import Documents
from lit_probsft.errors import UserError
from lit_probsft.run.summary import duration
from lit_probsft.training.early_stopping import EarlyStop
from lit_probsft.training.lightning_internals import between_steps
from lit_probsft.training.probing import Subset, training_documents
from lit_probsft.training.run_length import steps_in_epoch, total_steps

_OF_A_STREAM = 2000
"""So many of its first rows are looked at, at most a buffer."""
_LOOKED_AT = 64
"""Windows whose padding is measured, evenly spread over an epoch."""
_PROBED = 2
"""Documents that an objective is fitted to."""


class Windows(Plan):
    """Windows of other plans, one after the other, in place of an epoch.

    Args:
        chosen: plan, number of the window in its first epoch, and, where the plan knows some of the documents only,
            which they are.
    """

    def __init__(self, chosen: list[tuple[Plan, int, list[int] | None]]) -> None:
        first = chosen[0][0]
        self._windows = chosen
        self.batch_size, self.accumulate, self.world_size = first.batch_size, first.accumulate, first.world_size

    @property
    def num_windows(self) -> int:
        """How many were chosen."""
        return len(self._windows)

    def micro_batch(self, epoch: int, index: int, rank: int = 0) -> MicroBatch:
        """As `Plan`."""
        window, step = divmod(index, self.accumulate)
        plan, number, known = self._windows[window]
        found = plan.micro_batch(0, number * self.accumulate + step, rank)
        return found if known is None else replace(found, documents=tuple(known[place] for place in found.documents))


class TrialRows:
    """The documents of two optimizer steps: one that no step of the run exceeds, and one of average size.

    Documents with a row of their own make the largest step where the longest meet, which the plan of some epoch may let
    them do. Packs are of one size: there the largest step is that with most tokens.

    Args:
        datamodule: set up.
    """

    def __init__(self, datamodule: InstructionDataModule) -> None:
        self.datamodule = datamodule
        self.streaming = datamodule.streaming
        most = min(_OF_A_STREAM, datamodule.shuffle_buffer) if self.streaming else None
        self.documents: Documents = training_documents(datamodule, most)
        self.plan = self._plan()
        sizes = self.plan.window_counts(0)[:, 2]
        average = int(np.abs(sizes - sizes.mean()).argmin())
        if isinstance(self.plan, PackedPlan):
            largest: tuple[Plan, int, list[int] | None] = (self.plan, int(sizes.argmax()), None)
        else:
            sampler = self.plan.sampler
            places = np.arange(len(self.documents)) if sampler is None else np.unique(sampler.documents(0))
            longest = places[np.argsort(-self.documents.lengths[places], kind="stable")][: self.plan.window_size]
            largest = (self._plan(longest.tolist()), 0, longest.tolist())
        self.windows = Windows([largest, (self.plan, average, None)])

    def _plan(self, some: list[int] | None = None) -> Plan:
        """Of all documents, as the run plans them, or of some."""
        plan: Any = self.datamodule.plan
        if some is None and isinstance(plan, Plan):
            return plan
        documents = self.documents if some is None else Subset(self.documents, some)
        options = {name: getattr(plan, name) for name in ("batch_size", "accumulate", "world_size", "seed")}
        if self.datamodule.packing:
            assert self.datamodule.max_length is not None
            return PackedPlan(documents.lengths, documents.supervised, max_length=self.datamodule.max_length, **options)
        return Plan(documents.lengths, documents.supervised, shuffle=some is None, pool=plan.pool, **options)

    def train_dataloader(self) -> PlanLoader:
        """This rank's micro-batches of the two steps."""
        return PlanLoader(
            self.documents,
            self.windows,
            rank=self.datamodule.loader_over(self.documents).rank,
            pad_token_id=self.datamodule.tokenizer.pad_token_id,
            fixed_epoch=True,
        )

    def padding(self) -> float:
        """The share of the micro-batches' places that no token fills, over windows of the first epoch."""
        held = filled = 0
        for micro_batch in self._micro_batches():
            lengths = self.documents.lengths[list(micro_batch.documents)]
            packs = micro_batch.packs
            rows = lengths if packs is None else np.array([part.sum() for part in np.split(lengths, np.cumsum(packs))])
            held += max(len(rows[rows > 0]), 1) * int(rows.max(initial=1))
            filled += int(lengths.sum())
        return 1 - filled / held

    def _micro_batches(self) -> Iterator[MicroBatch]:
        number = self.plan.num_windows
        for window in np.unique(np.linspace(0, number - 1, min(number, _LOOKED_AT)).astype(int)).tolist():
            for step in range(self.plan.accumulate):
                for rank in range(self.plan.world_size):
                    yield self.plan.micro_batch(0, window * self.plan.accumulate + step, rank)


class Trial(Callback):
    """Takes the time of each step and the memory of the largest and of a validation batch, then ends the run."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak = 0
        self.validated = False
        self._since: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The model is where it is trained."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the clock with the first micro-batch of a step."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop it with the last."""
        if not between_steps(trainer) or self._since is None:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self.seconds.append(time.perf_counter() - self._since)
        self._since = None
        trainer.should_stop = len(self.seconds) == 2

    def on_validation_batch_end(self, *_: Any) -> None:
        """There was one."""
        self.validated = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The most that any rank has held."""
        device = trainer.strategy.root_device
        peak = torch.tensor(float(_peak(device)), device=device)
        self.peak = int(trainer.strategy.reduce(peak, reduce_op="max"))


class DryRunCLI(ProbSFTCLI):
    """Reads a configuration as fit does; loggers, callbacks and checkpoints of the run are left out."""

    def before_instantiate_classes(self) -> None:
        """What the run would be, but for what only a whole run needs."""
        config = self.config[self.command]
        if config.resume or config.get("ckpt_path"):
            raise UserError("--dry_run", "expected without --resume and --ckpt_path, got them")
        config.overwrite = True  # in words only: whatever is there stays
        super().before_instantiate_classes()
        trainer = config.trainer
        self._limit = trainer.limit_train_batches
        self._validate_every = None
        trainer.limit_train_batches = trainer.min_epochs = trainer.min_steps = trainer.max_time = None
        trainer.logger = trainer.callbacks = None
        trainer.fast_dev_run, trainer.overfit_batches, trainer.num_sanity_val_steps = False, 0.0, 0
        trainer.val_check_interval, trainer.check_val_every_n_epoch = 1.0, 1
        trainer.enable_checkpointing = trainer.enable_progress_bar = False
        if trainer.limit_val_batches != 0:
            trainer.limit_val_batches = 1

    def instantiate_classes(self) -> None:
        """The run's data module gives the documents of the trial."""
        super().instantiate_classes()
        data = self.datamodule
        if not isinstance(data, InstructionDataModule):
            raise UserError("--dry_run", f"expected an InstructionDataModule, got {type(data).__name__}")
        self.model.probe_rows = min(self.model.probe_rows, _PROBED)
        validation = data.val_dataloader

        def trained() -> PlanLoader:
            self.rows = TrialRows(data)
            return self.rows.train_dataloader()

        def validated() -> Any:
            if "validation" not in data.report:
                return validation()
            sets = ["validation", *(f"watch.{name}" for name in data.watched)]
            loaders = [data.loader_over(_longest(data.documents(name), data)) for name in sets]
            return loaders if len(loaders) > 1 else loaders[0]

        data.train_dataloader, data.val_dataloader = trained, validated  # type: ignore[method-assign]

    def _callbacks(self, config: Any, given: list[Callback]) -> list[Callback]:
        self.trial = Trial()
        return [self.trial, EarlyStop(config.early_stopping)]  # which refuses what would never stop

    def after_fit(self) -> None:
        """Say what was found."""
        if not self.trainer.is_global_zero:
            return
        self.trainer.limit_train_batches = 1.0 if self._limit is None else self._limit
        in_epoch, total = steps_in_epoch(self.trainer), total_steps(self.trainer)
        self.found = self._found(in_epoch, total)
        print("\n".join(["", *self._told(self.found)]))

    def _found(self, in_epoch: int | None, total: int) -> dict[str, Any]:
        counts = self.rows.plan.window_counts(0)
        documents, parameters = self.rows.documents, list(self.model.model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return {
            "parameters": sum(map(_numel, parameters)),
            "trained": sum(map(_numel, trained)),
            "documents": len(documents),
            "tokens": int(documents.lengths.sum()),
            "supervised": int(documents.supervised.sum()),
            "padding": self.rows.padding(),
            "steps_in_epoch": None if self.rows.streaming else in_epoch,
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

    def _told(self, f: dict[str, Any]) -> list[str]:
        rows, device, world = self.rows, self.trainer.strategy.root_device.type, self.trainer.world_size
        first = "the first " if rows.streaming else ""
        each = f" on each of {world} processes" if world > 1 else ""
        what = "most that tensors took" if device == "cuda" else "most that the process took, all of Python among it"
        largest = "the fullest packs" if isinstance(rows.plan, PackedPlan) else "the longest documents"
        validated = ", and a validation batch of the longest" if self.trial.validated else ""
        epoch = "" if f["steps_in_epoch"] is None else f"{f['steps_in_epoch']:,} in an epoch, "
        there = ", which exists: --resume or --overwrite will be needed" if self.run.in_use else ""
        of = "a step of average size" if len(self.trial.seconds) > 1 else "the largest step, which also warmed up"
        return [
            f"model:   {f['parameters']:,} parameters, {f['trained']:,} of them trained",
            f"data:    {first}{f['documents']:,} documents, {f['tokens']:,} tokens, {f['supervised']:,} of them "
            f"supervised; the longest has {f['longest']:,}",
            f"steps:   {epoch}{f['steps']:,} in all; {f['tokens_per_step']:,.0f} tokens in each on average, "
            f"{f['supervised_per_step']:,.0f} of them supervised; {f['padding']:.1%} padding",
            f"memory:  weights {_size(f['weights'])}, gradients {_size(f['gradients'])}, optimizer "
            f"{_size(f['optimizer'])}{each}",
            f"         peak {_size(f['peak'])} ({what}) in a step over {largest}{validated}",
            f"time:    roughly {duration(f['seconds'])}, without validation and saving: "
            f"{duration(f['seconds_per_step'])} for {of}",
            f"run:     {self.run.path}{there}; nothing was written there",
        ]


def _longest(documents: Documents, data: InstructionDataModule) -> Documents:
    """Those of the largest validation batch."""
    most = data.eval_batch_size * data.loader_over(documents).plan.world_size
    return Subset(documents, np.argsort(-documents.lengths, kind="stable")[:most].tolist())


def _peak(device: torch.device) -> int:
    """Bytes; of a CUDA device those of tensors, else those of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if os.name != "posix":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _numel(parameter: torch.nn.Parameter) -> int:
    """Of the whole, also where ZeRO-3 leaves an empty one in its place."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _bytes(tensor: Any) -> int:
    """Of what this rank holds of it."""
    local = getattr(tensor, "ds_tensor", None)
    local = getattr(tensor, "_local_tensor", tensor) if local is None else local
    return int(local.numel() * local.element_size())


def _state_bytes(optimizer: Any) -> int:
    optimizer = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed's holds the one that was asked for
    return sum(_bytes(v) for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def run_dry_run(args: Sequence[str]) -> ProbSFTCLI:
    """Run `fit --dry_run` with its flags."""
    return run_training_command(args, DryRunCLI)
