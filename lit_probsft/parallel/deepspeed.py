"""The strategy `DeepSpeed`: ZeRO with a correct gradient, usable on CPUs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.parallel.sharding import Partitioned, Sharding
from lit_probsft.storage.checkpoint_files import world_size_of
from lit_probsft.storage.checkpoint_safety import check_loadable
from lit_probsft.storage.checkpoint_writing import write_folder

_CPU_EXTENSION = "deepspeed_shm_comm"
"""Builds on first use on CPUs: DeepSpeed's communication between processes."""
_BUILD_SECONDS = 300
"""A build that takes longer has probably been killed."""


class DeepSpeed(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy with the same gradient as every other strategy.

    Lightning divides the loss by the number of accumulated micro-batches, and DeepSpeed's engine divides again, so that
    clipping and weight decay would act on a gradient that is too small. Here the engine does not divide.

    Args:
        stage: of ZeRO. 1 shards optimizer states, 2 also gradients, 3 also parameters.
        options: of `lightning.pytorch.strategies.DeepSpeedStrategy`.
    """

    def __init__(self, stage: Literal[1, 2, 3] = 2, **options: Any) -> None:
        if stage not in (1, 2, 3):
            raise UserError("trainer.strategy.stage", f"expected 1, 2 or 3, got {stage}")
        try:
            import deepspeed  # noqa: F401
        except ImportError as error:
            raise UserError(
                "trainer.strategy", f'DeepSpeed is not installed (pip install "lit_probsft[deepspeed]"): {error}'
            ) from error
        options.setdefault("logging_batch_size_per_gpu", 1)  # otherwise Lightning builds the loader to find out
        super().__init__(stage=stage, **options)
        self._transformers_config: Any = None

    def sharding(self) -> Sharding | None:
        """How models are sharded under stage 3; None under the other stages, where each rank holds the whole model."""
        return Partitioned() if self.zero_stage_3 else None

    # --- processes and devices: as Lightning's, without the check for CUDA and for devices with an index

    @override
    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    @override
    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        if self.root_device.type == "cpu":
            _warn_of_old_lock()
        self._init_deepspeed_distributed()

    @property
    def _args(self) -> argparse.Namespace:
        index = self.root_device.index  # None for a CPU
        return argparse.Namespace(device_rank=self.local_rank if index is None else index)

    # --- engines

    @override
    def _initialize_deepspeed_inference(self, model: Any) -> None:
        # Only a partitioned model needs an engine.
        import deepspeed

        assert isinstance(self.config, dict)
        if not self.zero_stage_3:
            self.model = model.to(self.root_device)
            return
        kept = ("fp16", "bf16", "zero_allow_untested_optimizer", "zero_optimization")
        config = {"train_micro_batch_size_per_gpu": 1, **{k: self.config[k] for k in kept if k in self.config}}
        self.model, _, _, _ = deepspeed.initialize(
            args=self._args, config=config, model=model, model_parameters=[], dist_init_required=False
        )

    @override
    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        import deepspeed

        engine, sharded_optimizer, _, _ = deepspeed.initialize(
            args=self._args,
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, sharded_optimizer

    @override
    @contextlib.contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        # Under stage 3 transformers partitions a model while it loads, as long as an HfDeepSpeedConfig is alive.
        self._init_config_if_needed()
        if self.zero_stage_3:
            from transformers.integrations import HfDeepSpeedConfig

            assert isinstance(self.config, dict)
            self.config.setdefault("train_micro_batch_size_per_gpu", 1)
            self._transformers_config = HfDeepSpeedConfig(self.config)
        yield

    @override
    def teardown(self) -> None:
        self._transformers_config = None
        super().teardown()

    # --- steps

    @override
    def backward(self, closure_loss: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        # Lightning has already divided the loss by the number of accumulated micro-batches.
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @property
    def grad_norm(self) -> float:
        """The 2-norm of the gradient of the last optimizer step, before clipping; infinite if it was skipped."""
        norm = self.deepspeed_engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    @property
    def step_skipped(self) -> bool:
        """Whether the engine skipped the last optimizer step because the gradient was not finite."""
        return bool(getattr(self.deepspeed_engine.optimizer, "overflow", False))

    # --- checkpoints

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        save = super().save_checkpoint
        write_folder(self, Path(self.broadcast(filepath)), "deepspeed", lambda partial: save(checkpoint, partial))

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        check_loadable(path, "deepspeed")
        if (before := world_size_of(path)) != self.world_size:
            raise UserError(
                "--resume",
                f"expected {before} processes, which wrote {path}: DeepSpeed cannot redistribute its shards to "
                f"{self.world_size}; use fsdp2, or start a new run from the exported model",
            )
        return super().load_checkpoint(str(path), weights_only)


def _warn_of_old_lock() -> None:
    """Warn if the folder of the extension is locked by a build that was killed; DeepSpeed waits for it forever."""
    from torch.utils.cpp_extension import get_default_build_root

    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    folder = "" if root is not None else f"py{sys.version_info.major}{sys.version_info.minor}*/"
    for lock in Path(get_default_build_root() if root is None else root).glob(f"{folder}{_CPU_EXTENSION}/lock"):
        with contextlib.suppress(FileNotFoundError):  # the build has ended meanwhile
            if time.time() - lock.stat().st_mtime > _BUILD_SECONDS:
                rank_zero_warn(
                    f"DeepSpeed waits for {lock}, which a killed build may have left; delete it if no other process is "
                    "building"
                )
