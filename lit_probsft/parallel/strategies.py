"""Which strategies are supported, and which of ours replace Lightning's."""

from __future__ import annotations

from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.strategy import Strategy

from lit_probsft.errors import UserError
from lit_probsft.parallel.deepspeed import DeepSpeed
from lit_probsft.parallel.fsdp2 import FSDP2
from lit_probsft.parallel.sharding import Sharding

__all__ = [
    "FSDP2",
    "DeepSpeed",
    "check_supported",
    "resolve_strategy",
    "sharding_of",
]
"""Old configurations name FSDP2 and DeepSpeed here."""


def resolve_strategy(chosen: Any) -> Any:
    """The strategy of a configuration, with Lightning's own classes replaced by ours.

    Raises:
        UserError: the strategy is not supported; the message names one to use instead.
    """
    if isinstance(chosen, str):
        if chosen.startswith("fsdp") and chosen != "fsdp2":
            raise UserError("trainer.strategy", f"{chosen} (FSDP1) is not supported, use fsdp2, which does the same")
        if chosen.startswith("ddp_") and chosen.split("_")[1] in ("spawn", "fork", "notebook"):
            raise UserError("trainer.strategy", f"{chosen} is not supported, use ddp, which starts its own processes")
        if chosen.startswith("deepspeed"):
            if chosen not in StrategyRegistry:
                known = [name for name in StrategyRegistry if name.startswith("deepspeed")]
                raise UserError("trainer.strategy", f"expected one of {', '.join(known)}, got {chosen!r}")
            options = {"stage": 2, **StrategyRegistry[chosen]["init_params"]}
            return Namespace(class_path=f"{__name__}.DeepSpeed", init_args=Namespace(**options))
        return chosen
    if not isinstance(chosen, Namespace) or "class_path" not in chosen:
        return chosen
    name = str(chosen.class_path).rsplit(".", 1)[-1]
    options = dict(vars(chosen.get("init_args") or Namespace()))
    if name == "FSDPStrategy":
        raise UserError("trainer.strategy", "FSDPStrategy (FSDP1) is not supported, use fsdp2, which does the same")
    if name == "DeepSpeedStrategy":
        return Namespace(class_path=f"{__name__}.DeepSpeed", init_args=Namespace(**options))
    if name == "ModelParallelStrategy":
        if options.pop("tensor_parallel_size", "auto") not in ("auto", 1):
            raise UserError(
                "trainer.strategy.tensor_parallel_size",
                "tensor parallelism is not supported, use fsdp2 (data parallel, sharded)",
            )
        options.pop("data_parallel_size", None)
        return Namespace(class_path=f"{__name__}.FSDP2", init_args=Namespace(**options))
    return chosen


def check_supported(strategy: Strategy) -> None:
    """Refuse an unsupported strategy, which a Python caller may pass as an object, or an unknown backend."""
    for lightnings, ours in (
        (FSDPStrategy, "FSDP2()"),
        (ModelParallelStrategy, "FSDP2()"),
        (DeepSpeedStrategy, "DeepSpeed()"),
    ):
        if isinstance(strategy, lightnings) and not isinstance(strategy, FSDP2 | DeepSpeed):
            raise UserError(
                "trainer.strategy", f"{type(strategy).__name__} is not supported, use lit_probsft.parallel.{ours}"
            )
    # Such as "gloo", or "cpu:gloo,cuda:nccl".
    backend = getattr(strategy, "process_group_backend", None)
    for part in [] if backend is None else str(backend).split(","):
        name = part.rpartition(":")[2].strip().lower()
        known = name != "undefined" and torch.distributed.is_backend_available(name)
        if not known or (name == "nccl" and not torch.cuda.is_available()):
            raise UserError(
                "trainer.strategy.process_group_backend",
                f"expected a backend of torch.distributed that this machine has, such as gloo, got {backend!r}",
            )


def sharding_of(strategy: Strategy) -> Sharding | None:
    """How a strategy shards models; None if each rank holds the whole model."""
    return strategy.sharding() if isinstance(strategy, FSDP2 | DeepSpeed) else None
