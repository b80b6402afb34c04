"""Parameter groups, learning-rate schedules, and an optimizer's options after a resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lit_probsft.errors import UserError

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
"""Takes parameter groups, returns an optimizer; in YAML a class path with its arguments except the parameters."""


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: matrices with weight decay, vectors (norms, biases) without.

    Embeddings are matrices. A shared parameter appears once. Empty groups are omitted.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if _dimensions(p) >= 2]
    vectors = [p for p in trainable if _dimensions(p) < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(factory: OptimizerFactory, model: nn.Module, trainer: L.Trainer) -> torch.optim.Optimizer:
    """The optimizer of a model's trainable parameters.

    Raises:
        UserError: the strategy does not support it.
    """
    optimizer = factory(parameter_groups(model))
    check_optimizer(optimizer, trainer.strategy)
    lr = optimizer.param_groups[0]["lr"]
    if str(trainer.precision) == "bf16-true" and lr < 1e-5:
        rank_zero_warn(
            f"trainer.precision bf16-true with lr {lr:g}: below 1e-5 most updates of bf16 weights round to nothing; "
            "use bf16-mixed, which keeps fp32 master weights"
        )
    return optimizer


def option_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The options of each parameter group, without its parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def check_optimizer(optimizer: torch.optim.Optimizer, strategy: object) -> None:
    """Refuse an optimizer that cannot step the strategy's sharded parameters.

    Raises:
        UserError: bitsandbytes with FSDP2, whose shards its kernels do not support. DeepSpeed's flat ones work.
    """
    kind = type(optimizer)
    if kind.__module__.startswith("bitsandbytes.") and type(strategy).__name__ == "FSDP2":
        raise UserError(
            "model.optimizer",
            "expected an optimizer that supports fsdp2, such as torch.optim.AdamW, got "
            f"{kind.__name__} of bitsandbytes, which supports ddp and DeepSpeed",
        )


def check_step(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer of torch that cannot step a small matrix; changes the matrix.

    Raises:
        UserError: for example SparseAdam, which wants sparse gradients.
    """
    if not type(optimizer).__module__.startswith("torch."):  # the kernels of others may need a GPU
        return
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step(lambda: 0.0)
    except RuntimeError as error:
        problem = f"{type(optimizer).__name__} cannot train this model: {error}"
        raise UserError("model.optimizer", problem) from error


def _dimensions(parameter: nn.Parameter) -> int:
    """Number of dimensions of the whole parameter; ZeRO-3 replaces it by an empty vector."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


@dataclass(frozen=True)
class Schedule:
    """A factor on the learning rate for each optimizer step: warm-up from 0 to 1, then a decay.

    Args:
        decay: `cosine` or `linear` from 1 to `final`, `constant`, or `wsd` (warm-up, stable, decay: constant, then
            linear to `final` over the last `decay_share` of the steps).
        warmup: below 1 a share of all steps, otherwise a number of steps.
        final: the factor at the end, 0 to 1.
        decay_share: the share of all steps in which `wsd` decays, above 0, at most 1.
    """

    decay: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: float = 0.1
    final: float = 0.0
    decay_share: float = 0.1

    def __post_init__(self) -> None:
        if self.decay not in ("cosine", "linear", "constant", "wsd"):
            raise UserError("model.schedule.decay", f"expected cosine, linear, constant or wsd, got {self.decay!r}")
        if not (0 <= self.warmup < 1 or float(self.warmup).is_integer()) or self.warmup < 0:
            raise UserError(
                "model.schedule.warmup", f"expected a share below 1 or a whole number of steps, got {self.warmup}"
            )
        if not 0 <= self.final <= 1:
            raise UserError("model.schedule.final", f"expected a factor from 0 to 1, got {self.final}")
        if not 0 < self.decay_share <= 1:
            raise UserError(
                "model.schedule.decay_share", f"expected a share above 0 and at most 1, got {self.decay_share}"
            )

    def factor(self, step: int, total: int) -> float:
        """The factor for the `step`-th optimizer step, counted from 0, out of `total`; continuous, in [0, 1]."""
        warmup = round(self.warmup * total) if self.warmup < 1 else round(self.warmup)
        if step < warmup:
            return (step + 1) / warmup
        if self.decay == "constant":
            return 1.0
        start = max(warmup, round(total * (1 - self.decay_share))) if self.decay == "wsd" else warmup
        share = min(max((step - start) / max(total - start, 1), 0.0), 1.0)
        shape = (1 + math.cos(math.pi * share)) / 2 if self.decay == "cosine" else 1 - share
        return self.final + (1 - self.final) * shape

    def attach(self, optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LambdaLR:
        """A scheduler to be stepped once per optimizer step. Warns if the warm-up is longer than `total` steps."""
        if self.warmup > max(total, 1):
            rank_zero_warn(
                f"model.schedule.warmup: {self.warmup:g} steps are more than the {total} of the run, whose learning "
                f"rate rises to {total / self.warmup:.2g} of the optimizer's and never falls"
            )
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, total))


def reapply_options(trainer: L.Trainer, options: list[dict[str, Any]], *, quiet: bool = False) -> None:
    """Set this run's optimizer options in an optimizer that was restored from a checkpoint, and print the changes.

    The learning rate becomes that of the schedule at this step, to the bit what it would be without a checkpoint.

    Args:
        trainer: with schedulers and optimizers as restored.
        options: of each parameter group, as this run's optimizer was built.
        quiet: print nothing.
    """
    changed: dict[str, Any] = {}
    for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) or not options:
            continue  # of a subclass with its own optimizer
        for index, (group, wanted) in enumerate(zip(scheduler.optimizer.param_groups, options, strict=True)):
            before = {**group, "lr": scheduler.base_lrs[index]}
            changed.update({f"{k} {before[k]}": v for k, v in wanted.items() if k in before and before[k] != v})
            scheduler.base_lrs[index] = wanted["lr"]
            lr = wanted["lr"] * scheduler.lr_lambdas[index](scheduler.last_epoch)
            group.update({**wanted, "initial_lr": wanted["lr"], "lr": lr})
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
    for option, value in changed.items():
        if not quiet:
            rank_zero_info(f"--resume: the optimizer's {option} is now {value}")
