"""The strategy `fsdp2`: FSDP2 with models that are sharded while they load, and checkpoints of shards."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning_utilities.core.apply_func import apply_to_collection
from torch.distributed.tensor import distribute_tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.parallel.sharding import FullySharded, Sharding
from lit_probsft.storage.atomic import partial_of
from lit_probsft.storage.checkpoint_files import METADATA
from lit_probsft.storage.checkpoint_safety import check_loadable
from lit_probsft.storage.checkpoint_writing import begin_folder, finish_folder, write_folder, writing_error

_TIMEOUT = timedelta(minutes=30)


class FSDP2(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer states over all devices of all nodes.

    Each rank holds a shard of every parameter; a layer is gathered when it runs. With the precision `bf16-mixed`,
    layers are gathered and run in bf16, gradients are reduced in fp32, and the shards, which are the master weights,
    stay in fp32.

    Args:
        save_distributed_checkpoint: each rank writes its shards into a folder; False gathers them into one file.
        cpu_offload: keep parameters, gradients and optimizer states in CPU memory; slow, for models that fit no other
            way.
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
        self.sharded_checkpoints = save_distributed_checkpoint
        """Whether a checkpoint is a folder of shards."""
        self.cpu_offload = cpu_offload
        self.asynchronous = False
        """Whether a folder of shards is written while training continues; see `finish`."""
        self._thread: tuple[ThreadPoolExecutor, Any] | None = None
        self._writing: tuple[Path, Future[str | None]] | None = None

    @override
    def setup_environment(self) -> None:
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
            raise UserError("trainer.strategy.cpu_offload", "expected another device than the CPU to offload from")
        # transformers reads LOCAL_RANK to choose the device, and SLURM does not set it.
        os.environ["LOCAL_RANK"] = str(self.local_rank)

    def sharding(self) -> Sharding:
        """How models are sharded; available once the processes are connected."""
        return FullySharded(
            self.device_mesh["data_parallel"],
            compute_bf16=str(self.precision_plugin.precision) == "bf16-mixed",
            cpu_offload=self.cpu_offload,
        )

    @override
    def model_to_device(self) -> None:
        if not self.cpu_offload:
            super().model_to_device()

    # --- saving

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if not self.sharded_checkpoints:
            super().save_checkpoint(checkpoint, filepath)
            return
        path, first = Path(self.broadcast(filepath)), self.is_global_zero
        if not self.asynchronous:
            write_folder(self, path, "fsdp2", lambda partial: _save_shards(checkpoint, partial, None, first))
            return
        if self._thread is None:  # with its own process group, so that its messages do not mix with the training's
            self._thread = ThreadPoolExecutor(max_workers=1), torch.distributed.new_group(backend="gloo")
        thread, group = self._thread
        copy = apply_to_collection(checkpoint, torch.Tensor, lambda t: t.detach().clone())
        begin_folder(self, path)
        self._writing = path, thread.submit(_try_to_save_shards, copy, partial_of(path), group, first)

    def done(self) -> bool:
        """Whether this rank has nothing left to write."""
        return self._writing is None or self._writing[1].done()

    def finish(self) -> str | None:
        """Wait until all ranks have written their shards, and rename the folder.

        Returns:
            None: a failure is raised on all ranks, unlike in `WholeFileIO`.

        Raises:
            UserError: the folder could not be written.
        """
        if self._writing is not None:
            (path, future), self._writing = self._writing, None
            finish_folder(self, path, "fsdp2", future.result())
        return None

    # --- loading

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # A folder loads on any number of ranks; and so does the single file of another strategy.
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            check_loadable(path, "fsdp2")
            return self._load_folder(path, weights_only is not False)
        return self._load_file(path, weights_only is not False)

    def _load_folder(self, path: Path, weights_only: bool) -> dict[str, Any]:
        # Lightning's own loader asks for every weight of the model, but a checkpoint of adapters lacks the base.
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_model_state_dict,
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )
        from torch.distributed.checkpoint.state_dict_loader import load

        model, module = self.model, self.lightning_module
        assert model is not None
        assert module is not None
        stored, strict = FileSystemReader(path).read_metadata().state_dict_metadata, module.strict_loading
        weights = get_model_state_dict(model)
        weights = {name: value for name, value in weights.items() if strict or f"state_dict.{name}" in stored}
        load({"state_dict": weights}, checkpoint_id=path)
        model.load_state_dict(weights, strict=strict)
        for index, optimizer in enumerate(self.optimizers):
            state: dict[str, Any] = {f"optimizer_{index}": get_optimizer_state_dict(model, optimizer)}
            load(state, checkpoint_id=path)
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(model, optimizer, optim_state_dict=state[f"optimizer_{index}"], options=options)
        return dict(torch.load(path / METADATA, weights_only=weights_only))

    def _load_file(self, path: Path, weights_only: bool) -> dict[str, Any]:
        # Lightning numbers the optimizer's parameters in the order of the model, which is not that of its groups.
        content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        sharding, weights = self.sharding(), content.pop("state_dict")
        assert self.model is not None
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if name in weights and weights[name].shape == tensor.shape:
                sharding.put(tensor, weights[name])
            elif isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:  # a frozen base is not stored
                raise UserError("--resume", f"expected a checkpoint of this model, {path} is of another: {name}")
        states = content.pop("optimizer_states", [])
        for optimizer, saved in zip(self.optimizers, states, strict=False):
            sharded = {}
            for before, now in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                for key, parameter in zip(before["params"], now["params"], strict=True):
                    if key in saved["state"]:
                        sharded[key] = {k: _shard_like(parameter, v) for k, v in saved["state"][key].items()}
            optimizer.load_state_dict({"state": sharded, "param_groups": saved["param_groups"]})
        return content


StrategyRegistry.register("fsdp2", FSDP2, description="fully sharded data parallel over all devices (lit_probsft)")


def _save_shards(checkpoint: dict[str, Any], folder: Path, group: Any, writes_rest: bool) -> None:
    """Write this rank's shards, and on one rank everything else, in the format of Lightning's ModelParallelStrategy.

    Args:
        checkpoint: is emptied.
        folder: the same on all ranks.
        group: the process group to talk over; None for the default one.
        writes_rest: whether this rank writes everything else.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    shards = {"state_dict": checkpoint.pop("state_dict")}
    shards.update({f"optimizer_{index}": state for index, state in enumerate(checkpoint.pop("optimizer_states", []))})
    save(shards, checkpoint_id=folder, process_group=group)
    if writes_rest:
        torch.save(checkpoint, folder / METADATA)


def _try_to_save_shards(*args: Any) -> str | None:
    """`_save_shards` in a thread; returns why it failed."""
    try:
        _save_shards(*args)
    except BaseException as error:  # CheckpointException is not an Exception
        return writing_error(error)
    return None


def _shard_like(parameter: Any, value: Any) -> Any:
    """This rank's shard of an optimizer state with the parameter's shape; any other value as it is."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or value.ndim == 0:
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
