"""Parameter groups and learning-rate schedules, by optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_probsft.errors import UserError

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
"""Takes parameter groups, returns an optimizer; in YAML a class path with its arguments but for the parameters."""


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: matrices as the optimizer decays them, vectors (norms, biases) without
    decay.

    Embeddings are matrices and are decayed. A shared parameter appears once. Empty groups are left out.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if _dimensions(p) >= 2]
    vectors = [p for p in trainable if _dimensions(p) < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def check_optimizer(optimizer: torch.optim.Optimizer, strategy: object) -> None:
    """Refuse an optimizer that cannot step what a strategy has cut.

    Raises:
        UserError: bitsandbytes' kernels know no slices of FSDP2. DeepSpeed hands them flat ones.
    """
    kind = type(optimizer)
    if kind.__module__.startswith("bitsandbytes.") and type(strategy).__name__ == "FSDP2":
        raise UserError(
            "model.optimizer",
            "expected an optimizer that steps the slices of fsdp2, such as torch.optim.AdamW, got "
            f"{kind.__name__} of bitsandbytes, which goes with ddp and DeepSpeed",
        )


def _dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter: ZeRO-3 leaves an empty vector in its place."""
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
        if not (math.isfinite(self.warmup) and self.warmup >= 0):
            raise UserError(
                "model.schedule.warmup", f"expected a share below 1 or a number of steps, got {self.warmup}"
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
        """A scheduler that is to be stepped once per optimizer step."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, total))


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, in double: fp32 overflows when it squares what Power with a negative alpha
    gives."""
    if not gradients:
        return torch.zeros(())
    wide = torch.float32 if gradients[0].device.type == "mps" else torch.float64
    norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=wide) for gradient in gradients])
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm
