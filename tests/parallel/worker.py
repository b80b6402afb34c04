"""Fits, in one process or in each of several: `python -m torch.distributed.run ... -m tests.parallel.worker JOBS OUT`.

One launch runs many jobs, because the imports take longer than a job.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import logging
import os
import sys
import threading
import warnings
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from lit_probsft.errors import UserError
from lit_probsft.model import ModelSource, PretrainedCausalLM, RandomCausalLM
from lit_probsft.model.lora import LoRA
from lit_probsft.model.reference import Reference
from lit_probsft.objectives import TokenStats
from lit_probsft.parallel import FSDP2, DeepSpeed
from lit_probsft.parallel.sharding import global_numel, is_partitioned
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.members import ALL
from tests.parallel.launch import torchrun

STRATEGIES: dict[str, Any] = {
    "one": lambda: "auto",
    "ddp": lambda: "ddp",
    "fsdp2": lambda: FSDP2(timeout=timedelta(seconds=120)),
    "zero1": lambda: DeepSpeed(stage=1),
    "zero2": lambda: DeepSpeed(stage=2),
    "zero3": lambda: DeepSpeed(stage=3),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": tiny.LLAMA,
    "tied": {**tiny.LLAMA, "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
        # other ranks would draw other masks
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "gemma2": {**tiny.LLAMA, "model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 32},
}
LORAS = {
    "plain": LoRA(r=4),
    "dora": LoRA(r=4, dora=True),
    "head": LoRA(r=4, target_modules=["q_proj", "lm_head"]),
    "dora head": LoRA(r=4, target_modules=["lm_head"], dora=True, rslora=True),
    "whole": LoRA(r=4, modules_to_save=["embed_tokens", "lm_head", "input_layernorm"]),
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": tiny.sgd,
    "adamw": tiny.adamw,
    "sgd at twice the rate": partial(torch.optim.SGD, lr=0.2),
}


@dataclass(frozen=True)
class Fit:
    """A fit, as plain data for JSON."""

    rows: str
    model: str
    """A name in CONFIGS, for random weights, or a folder."""
    objective: int = 0
    """An index of tests.members.ALL."""
    normalize: str = "tokens"
    dtype: str = "float64"
    precision: str | None = None
    optimizer: str = "sgd"
    clip: float | None = 1.0
    lora: str | None = None
    """A name in LORAS."""
    quantization: str = "none"
    """For a model in a folder."""
    recompute: bool = False
    compile: bool = False
    batch_size: int = 2
    accumulate: int = 2
    epochs: int = 5
    packing: int | None = None
    """The length of packed rows in tokens; None does not pack."""
    add_tokens: list[str] | None = None
    broken: int | None = None
    """The step at which the loss is infinite on the last rank."""

    def source(self) -> ModelSource:
        options: Any = {"dtype": self.dtype, "gradient_checkpointing": self.recompute, "compile": self.compile}
        if self.model in CONFIGS:
            return RandomCausalLM(CONFIGS[self.model], **options)
        return PretrainedCausalLM(self.model, quantization=self.quantization, **options)  # type: ignore[arg-type]

    def run(self, strategy: str = "one") -> dict[str, Any]:
        """Train; returns the whole weights and the metrics of each step."""
        module = Watched(
            self.source(),
            ALL[self.objective],
            OPTIMIZERS[self.optimizer],
            Schedule("constant", warmup=0),
            normalize=self.normalize,  # type: ignore[arg-type]
            lora=LORAS[self.lora] if self.lora else None,
            # In bf16 the rounding of a reference depends on the shape of its batch, on some processors.
            reference=Reference(dtype=self.dtype),  # type: ignore[arg-type]
        )
        module.broken = self.broken
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer = tiny.trainer(
            max_epochs=self.epochs,
            accumulate_grad_batches=self.accumulate,
            gradient_clip_val=self.clip,
            precision=self.precision,
            strategy=STRATEGIES[strategy](),
            devices=int(os.environ.get("WORLD_SIZE", "1")),
        )
        try:
            options: Any = {"packing": True, "max_length": self.packing} if self.packing else {"length_pool": 0}
            options |= {"batch_size": self.batch_size, "add_tokens": self.add_tokens}
            trainer.fit(module, datamodule=tiny.data(Path(self.rows), **options))
        except UserError as error:  # raised on all ranks, before they communicate
            return {"refused": str(error)}
        return {
            "weights": whole_weights(module.model),
            "steps": module.steps,
            "moved": module.moved,
            "skipped": module.skipped_steps,
            "dtypes": sorted({str(p.dtype) for p in module.model.parameters()}),
            "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        }


class Watched(ProbSFTModule):
    """Keeps the metrics of each step; can make the loss infinite at one step, on the last rank only."""

    broken: int | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.steps: list[dict[str, float]] = []
        self.moved = 0.0
        self._start: list[torch.Tensor] = []

    def token_loss(self, tokens: TokenStats) -> torch.Tensor:
        loss = super().token_loss(tokens)
        last = self.global_rank == self.trainer.world_size - 1
        return loss + torch.inf if last and self.global_step == self.broken else loss

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.trainer.world_size == 1:
            self._start = [p.detach().clone() for p in self.model.parameters()]

    def on_train_end(self) -> None:
        """Measure the largest change of a weight, in a single process, with which other runs are compared."""
        pairs = zip(self._start, self.model.parameters(), strict=False)
        self.moved = max((float((new.detach() - old).abs().max()) for old, new in pairs), default=0.0)

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        if self.trainer.global_step > len(self.steps):
            self.steps.append({name: float(value) for name, value in self.trainer.callback_metrics.items()})


@dataclass(frozen=True)
class Load:
    """Loads a model as a fit does, without training."""

    rows: str
    model: str
    """A folder, or a transformers configuration as JSON."""
    dtype: str = "float64"
    add_tokens: list[str] | None = None

    def run(self, strategy: str) -> dict[str, Any]:
        """The size of the model, the memory that loading took, this rank's share of each parameter, and digests."""
        source = PretrainedCausalLM(self.model) if Path(self.model).is_dir() else RandomCausalLM(json.loads(self.model))
        module = Weighed(dataclasses.replace(source, dtype=self.dtype))
        trainer = tiny.trainer(strategy=STRATEGIES[strategy](), devices=2, limit_train_batches=0)
        trainer.fit(module, datamodule=tiny.data(Path(self.rows), add_tokens=self.add_tokens))
        parameters = list(module.model.parameters())
        return {
            "size": sum(global_numel(p) * p.element_size() for p in parameters),
            "grown": module.grown,
            "shares": [local_numel(p) / global_numel(p) for p in parameters],
            "digests": {name: digest(value) for name, value in whole_weights(module.model).items()},
        }


class Weighed(ProbSFTModule):
    """Measures the memory while its model loads."""

    grown = 0

    def configure_model(self) -> None:
        with Memory() as memory:
            super().configure_model()
        self.grown = memory.grown


class Memory:
    """The largest growth of anonymous memory in bytes.

    Pages of a mapped file do not count, because the system may drop them. Set MALLOC_MMAP_THRESHOLD_; otherwise malloc
    reuses freed memory and hides growth."""

    grown = 0

    def __enter__(self) -> Memory:
        gc.collect()
        self._before, self._over = self._now(), threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self.grown = max(self.grown, self._now() - self._before)

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def local_numel(parameter: torch.nn.Parameter) -> int:
    """The elements of a parameter on this rank."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.numel()
    return getattr(parameter.data, "to_local", lambda: parameter)().numel()


def digest(value: torch.Tensor) -> str:
    return hashlib.sha256(value.contiguous().view(torch.uint8).numpy()).hexdigest()


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """The whole state dict on every rank, whatever the strategy."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        # With cpu_offload only the first rank would get the weights.
        return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    parts = [p for p in model.parameters() if is_partitioned(p)]
    if parts:
        import deepspeed

        with deepspeed.zero.GatheredParameters(parts):
            return {name: value.detach().clone() for name, value in model.state_dict().items()}
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


def do_jobs(jobs: dict[str, tuple[str, Fit | Load]], out: Path, timeout: float, **environment: str) -> None:
    """Run jobs (a strategy and a `Fit` or `Load`) on two ranks; each writes its result to `out/NAME.RANK.pt`."""
    lines = {
        name: {"strategy": strategy, "kind": type(what).__name__, **dataclasses.asdict(what)}
        for name, (strategy, what) in jobs.items()
    }
    (out / "jobs.json").write_text(json.dumps(lines))
    torchrun("tests.parallel.worker", str(out / "jobs.json"), str(out), timeout=timeout, **environment)


def main(jobs: Path, out: Path) -> None:
    quiet()
    rank = os.environ["RANK"]
    for name, job in json.loads(jobs.read_text()).items():
        if rank == "0":
            print(
                name, file=sys.stderr, flush=True
            )  # if the launch fails, the last name printed is the job that failed
        strategy, kind = job.pop("strategy"), {"Fit": Fit, "Load": Load}[job.pop("kind")]
        torch.save(kind(**job).run(strategy), out / f"{name}.{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
