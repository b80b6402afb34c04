"""Lightning's strategies, as this project needs them: FSDP2 and DeepSpeed that cut a model while it is read, on GPUs
and, for tests, on CPUs; processes that end together."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.strategy import Strategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch.distributed.tensor import distribute_tensor

from lit_probsft.errors import UserError
from lit_probsft.parallel.sharding import FullySharded, Partitioned, Sharding
from lit_probsft.storage.atomic import partial_of
from lit_probsft.storage.checkpoint_files import format_of, world_size_of
from lit_probsft.storage.checkpoint_safety import check_harmless
from lit_probsft.storage.checkpoint_writing import begin_folder, finish_folder, write_folder, writing_error

_TIMEOUT = timedelta(minutes=30)


class FSDP2(ModelParallelStrategy):
    """Every rank holds a slice of each parameter, its gradient and its moments; layers are gathered when they run.

    All devices of all nodes share one model. With the precision `bf16-mixed` layers are gathered and run in bf16,
    gradients are reduced in fp32, and the slices, the master weights, stay fp32.

    Args:
        save_distributed_checkpoint: each rank writes its slices, into a folder; False gathers them into one file.
        cpu_offload: slices, gradients and moments lie in the host's memory; slow, for a model that fits no other way.
        process_group_backend: None takes nccl on GPUs and gloo on CPUs.
        timeout: how long a rank waits for the others.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = _TIMEOUT,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.cpu_offload = cpu_offload
        self.asynchronous = False
        """Whether checkpoints in slices are written while training goes on; see `finish`."""
        self._thread: tuple[ThreadPoolExecutor, Any] | None = None
        self._writing: tuple[Path, Future[str | None]] | None = None

    @property
    def sharded_checkpoints(self) -> bool:
        """Is a checkpoint a folder of slices?"""
        return bool(self._save_distributed_checkpoint)

    def setup_environment(self) -> None:
        """Processes and mesh: all ranks see different data and share one model."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        kind, accelerator = self.root_device.type, torch.accelerator.current_accelerator(check_available=True)
        if accelerator is not None and accelerator.type != kind:
            raise UserError(
                "trainer.accelerator",
                f"fsdp2 shards over this machine's {accelerator.type} devices, got {kind}; hide "
                "them (CUDA_VISIBLE_DEVICES=) to run it on the CPU",
            )
        if self.cpu_offload and kind == "cpu":
            raise UserError("trainer.strategy.cpu_offload", "expected devices other than the CPU, whose memory it is")
        # transformers reads it to choose the device, and SLURM does not set it.
        os.environ["LOCAL_RANK"] = str(self.local_rank)

    def sharding(self) -> Sharding:
        """How models are cut, once the processes are there."""
        return FullySharded(
            self.device_mesh["data_parallel"],
            compute_bf16=str(self.precision_plugin.precision) == "bf16-mixed",
            cpu_offload=self.cpu_offload,
        )

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """A folder is written beside its place and renamed when every rank has written its slices."""
        if not self.sharded_checkpoints:
            super().save_checkpoint(checkpoint, filepath)
            return
        path, save = Path(self.broadcast(filepath)), super().save_checkpoint
        if not self.asynchronous:
            write_folder(self, path, "fsdp2", lambda partial: save(checkpoint, partial))
            return
        if self._thread is None:  # a group of its own, so that its messages do not mix with the training's
            self._thread = ThreadPoolExecutor(max_workers=1), torch.distributed.new_group(backend="gloo")
        thread, group = self._thread
        copy = apply_to_collection(checkpoint, torch.Tensor, lambda t: t.detach().clone())
        begin_folder(self, path)
        self._writing = path, thread.submit(_write_slices, copy, partial_of(path), group, self.is_global_zero)

    def done(self) -> bool:
        """Is nothing being written on this rank?"""
        return self._writing is None or self._writing[1].done()

    def finish(self) -> str | None:
        """Wait until all ranks have written, and give the folder its name. Its failures are raised, not returned."""
        if self._writing is not None:
            (path, future), self._writing = self._writing, None
            finish_folder(self, path, "fsdp2", future.result())
        return None

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Slices on any number of ranks, or a single file."""
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return self._load_file(path, weights_only is not False)
        _check_format(path, "fsdp2")
        check_harmless(path)
        assert self.lightning_module is not None
        with contextlib.nullcontext() if self.lightning_module.strict_loading else _those_in(path):
            return super().load_checkpoint(path, weights_only is not False)

    def _load_file(self, path: Path, weights_only: bool) -> dict[str, Any]:
        # Lightning would number the optimizer's parameters in the model's order, which is not that of its groups.
        content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        sharding, weights = self.sharding(), content.pop("state_dict")
        assert self.model is not None
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if name in weights and weights[name].shape == tensor.shape:
                sharding.put(tensor, weights[name])
            elif isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:  # a frozen base is not in it
                raise UserError("--resume", f"expected a checkpoint of this model, {path} is of another: {name}")
        states = content.pop("optimizer_states", [])
        for optimizer, saved in zip(self.optimizers, states, strict=False):
            sharded = {}
            for before, now in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                for key, parameter in zip(before["params"], now["params"], strict=True):
                    if key in saved["state"]:
                        sharded[key] = {k: _like(parameter, v) for k, v in saved["state"][key].items()}
            optimizer.load_state_dict({"state": sharded, "param_groups": saved["param_groups"]})
        return content

    def model_to_device(self) -> None:
        """Offloaded slices stay where they are."""
        if not self.cpu_offload:
            super().model_to_device()


class DeepSpeed(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy with its gradient as large as everybody else's, and usable on CPUs.

    Lightning divides the loss by the number of accumulated micro-batches and DeepSpeed's engine divides again, so that
    clipping and weight decay would meet a gradient that is too small; here the engine does not.

    Args:
        stage: of ZeRO: 1 shards moments, 2 gradients too, 3 parameters too.
        options: as of `lightning.pytorch.strategies.DeepSpeedStrategy`.
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
        options.setdefault("logging_batch_size_per_gpu", 1)  # or Lightning would build the loader to look
        super().__init__(stage=stage, **options)
        self._alive: Any = None

    def sharding(self) -> Sharding | None:
        """How models are cut: under stage 3; the others hold the whole model on each rank."""
        return Partitioned() if self.zero_stage_3 else None

    @property
    def sharded_checkpoints(self) -> bool:
        """Is a checkpoint a folder of slices?"""
        return True

    def setup_environment(self) -> None:
        """Lightning's, without its insistence on CUDA."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Lightning's, for devices without an index too."""
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def _args(self) -> argparse.Namespace:
        index = self.root_device.index  # a CPU has none
        return argparse.Namespace(device_rank=self.local_rank if index is None else index)

    def _initialize_deepspeed_inference(self, model: Any) -> None:
        """An engine only where the model is in parts; the other stages have nothing to share without an optimizer."""
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

    @contextlib.contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Under stage 3 transformers partitions what it reads, which it knows from a configuration that is alive."""
        self._init_config_if_needed()
        if self.zero_stage_3:
            from transformers.integrations import HfDeepSpeedConfig

            assert isinstance(self.config, dict)
            self.config.setdefault("train_micro_batch_size_per_gpu", 1)
            self._alive = HfDeepSpeedConfig(self.config)
        yield

    def backward(self, closure_loss: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss is divided by the accumulated micro-batches already."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """A folder, written beside its place and renamed when every rank has written its part."""
        save = super().save_checkpoint
        write_folder(self, Path(self.broadcast(filepath)), "deepspeed", lambda partial: save(checkpoint, partial))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A folder that as many ranks have written."""
        path = Path(self.broadcast(checkpoint_path))
        _check_format(path, "deepspeed")
        if (before := world_size_of(path)) != self.world_size:
            raise UserError(
                "--resume",
                f"expected {before} processes, which wrote {path}: DeepSpeed cannot deal its parts out to "
                f"{self.world_size}; fsdp2 can, or start a new run from the exported model",
            )
        check_harmless(path)
        return super().load_checkpoint(str(path), weights_only)

    @property
    def grad_norm(self) -> float:
        """2-norm of the gradient of the last optimizer step, before clipping; infinite where it was skipped."""
        norm = self.deepspeed_engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    @property
    def step_skipped(self) -> bool:
        """Did the engine leave out the last optimizer step, its gradient not being finite?"""
        return bool(getattr(self.deepspeed_engine.optimizer, "overflow", False))

    def teardown(self) -> None:
        """Let transformers forget the configuration."""
        self._alive = None
        super().teardown()


@contextlib.contextmanager
def _those_in(path: Path) -> Iterator[None]:
    """Lightning asks a folder for every weight of the model; while this lasts, for those that it holds. Beside adapters
    the base is not written."""
    from torch.distributed.checkpoint import state_dict
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    there = FileSystemReader(path).read_metadata().state_dict_metadata
    whole = state_dict.get_model_state_dict

    def some(*args: Any, **options: Any) -> dict[str, Any]:
        return {name: value for name, value in whole(*args, **options).items() if f"state_dict.{name}" in there}

    state_dict.get_model_state_dict = some
    try:
        yield
    finally:
        state_dict.get_model_state_dict = whole


def _like(parameter: Any, value: Any) -> Any:
    """This rank's slice of a moment of the parameter's shape; anything else as it is."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or value.ndim == 0:
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


def _write_slices(checkpoint: dict[str, Any], partial: Path, group: Any, writes_rest: bool) -> str | None:
    """What Lightning's strategy does, over another process group; what went wrong, if anything did."""
    from lightning.fabric.utilities.load import _METADATA_FILENAME
    from torch.distributed.checkpoint.state_dict_saver import save

    slices = {"state_dict": checkpoint.pop("state_dict")}
    slices.update({f"optimizer_{index}": state for index, state in enumerate(checkpoint.pop("optimizer_states", []))})
    try:
        save(slices, checkpoint_id=partial, process_group=group)
        if writes_rest:
            torch.save(checkpoint, partial / _METADATA_FILENAME)
    except BaseException as error:  # torch's is no Exception
        return writing_error(error)
    return None


def _check_format(path: Path, expected: str) -> None:
    found = format_of(path)
    if found != expected:
        raise UserError(
            "--resume",
            f"expected a checkpoint that {expected} wrote, {path} is one of {found}: continue with the "
            "strategy it was written with, or start a new run from its exported model",
        )


StrategyRegistry.register("fsdp2", FSDP2, description="fully sharded data parallel over all devices (lit_probsft)")


def settled(chosen: Any) -> Any:
    """The strategy of a configuration with Lightning's own classes exchanged for ours.

    Raises:
        UserError: for a strategy under which the project's promises do not hold, naming what to use.
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
    """Refuse, also from Python, a strategy that would not hold what the project promises."""
    from lightning.pytorch.strategies import FSDPStrategy

    for stock, ours in (
        (FSDPStrategy, "FSDP2()"),
        (ModelParallelStrategy, "FSDP2()"),
        (DeepSpeedStrategy, "DeepSpeed()"),
    ):
        if isinstance(strategy, stock) and not isinstance(strategy, FSDP2 | DeepSpeed):
            raise UserError(
                "trainer.strategy", f"{type(strategy).__name__} is not supported, use lit_probsft.parallel.{ours}"
            )


def sharding_of(strategy: Strategy) -> Sharding | None:
    """How a strategy cuts models; None where each rank holds the whole."""
    return strategy.sharding() if isinstance(strategy, FSDP2 | DeepSpeed) else None
