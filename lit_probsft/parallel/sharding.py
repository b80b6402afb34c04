"""How a strategy shards a model, and how to look at a sharded model."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lit_probsft.errors import UserError
from lit_probsft.parallel.transformers_loading import extend_with_zeros, pad_with_zero_rows, shard_while_loading

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Sharding(ABC):
    """How a strategy shards a model."""

    @contextlib.contextmanager
    def loading(self, add_rows: Callable[[Any], None] | None = None) -> Iterator[dict[str, Any]]:
        """Yields options with which `from_pretrained` loads only this rank's shards while the context lasts.

        Args:
            add_rows: gives the empty model more rows than the files have, in place, if it must have them before it is
                sharded.
        """
        yield {}

    def extend(self, parameter: Tensor, rows: int) -> Tensor:
        """A copy of a parameter with zero rows added, `rows` in all, sharded like the parameter."""
        return extend_with_zeros(parameter, rows)

    @abstractmethod
    def put(self, parameter: Tensor, value: Tensor) -> None:
        """Set a sharded parameter to a value that every rank holds whole."""

    def shard(self, model: Any) -> Any:
        """Shard a loaded model in place; returns it."""
        return model

    def shard_adapters(self, model: Any) -> None:
        """Shard the adapters that were added to a sharded model."""
        return


class FullySharded(Sharding):
    """FSDP2. Each decoder layer is a unit, which is gathered when it runs; the rest of the model is one more unit.

    transformers' own plan is not used: it makes a tied output layer a unit of its own, so that the largest matrix is
    gathered twice. Only the loading of shards is left to transformers.

    Args:
        mesh: the ranks that share the model, one-dimensional.
        compute_bf16: gather and compute in bf16 and reduce gradients in fp32; the shards stay in fp32.
        cpu_offload: keep shards in CPU memory and move each layer to the device when it runs.
    """

    def __init__(self, mesh: DeviceMesh, *, compute_bf16: bool, cpu_offload: bool) -> None:
        self.mesh = mesh
        self.compute_bf16, self.cpu_offload = compute_bf16, cpu_offload

    @contextlib.contextmanager
    def loading(self, add_rows: Callable[[Any], None] | None = None) -> Iterator[dict[str, Any]]:
        """transformers loads each rank's shards of the empty model that we shard. A single device loads it all."""
        if self.mesh.size() == 1:
            yield {}
            return
        from transformers.distributed import DistributedConfig

        def shard(model: Any) -> Any:
            if add_rows is not None:
                add_rows(model)
            return self.shard(model)

        padding = contextlib.nullcontext() if add_rows is None else pad_with_zero_rows()
        with shard_while_loading(shard), padding:
            yield {"distributed_config": DistributedConfig(fsdp_size=self.mesh.size())}

    def shard(self, model: Any) -> Any:
        """Shard in place a model that is loaded, or on the meta device; returns it."""
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if isinstance(model, FSDPModule):
            return model
        model.tie_weights()  # a unit must know which of its parameters are the same
        for layer in decoder_layers(model):
            fully_shard(layer, **self._options)
        fully_shard(model, **self._options)
        return model

    def shard_adapters(self, model: Any) -> None:
        """Make each adapted matrix a unit with its adapters; its own weight stays in the unit of its layer."""
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        for layer in decoder_layers(model):
            for module in layer.modules():
                base = getattr(module, "base_layer", None)
                if isinstance(base, nn.Module):
                    fully_shard(module, ignored_params=set(base.parameters()), **self._options)
        head = model.get_output_embeddings()
        if hasattr(head, "lora_A"):
            fully_shard(head, ignored_params=set(head.parameters(recurse=False)), **self._options)
        alone = [name for name, p in model.named_parameters() if not isinstance(p.data, DTensor)]
        if alone:  # each rank would train its own
            raise UserError("model.lora", f"expected adapters inside the decoder layers, got {alone[0]}")

    @property
    def _options(self) -> dict[str, Any]:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

        options: dict[str, Any] = {"mesh": self.mesh}
        if self.compute_bf16:
            options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if self.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy()
        return options

    def put(self, parameter: Tensor, value: Tensor) -> None:
        """Keep this rank's shard of the value."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        with torch.no_grad():
            if not isinstance(parameter.data, DTensor):
                parameter.copy_(value)
                return
            sharded = distribute_tensor(
                value.to(parameter.device_mesh.device_type),  # type: ignore[attr-defined]
                parameter.device_mesh,  # type: ignore[attr-defined]
                parameter.placements,  # type: ignore[attr-defined]
                src_data_rank=None,  # every rank has the same value
            )
            parameter.data.to_local().copy_(sharded.to_local())


class Partitioned(Sharding):
    """ZeRO-3. transformers partitions a model while it loads, as long as an `HfDeepSpeedConfig` is alive."""

    def extend(self, parameter: Tensor, rows: int) -> Tensor:
        """Gathers both tensors for the copy; every rank keeps its part."""
        import deepspeed
        from transformers.integrations.deepspeed import deepspeed_config

        shape = (rows, *parameter.ds_shape[1:])  # type: ignore[attr-defined]
        with deepspeed.zero.Init(config_dict_or_path=deepspeed_config()):
            extended: Any = _OneParameter(shape, parameter.dtype).parameter
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter, extended], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                extended[: len(parameter)] = parameter
        extended.requires_grad_(parameter.requires_grad)
        return cast(Tensor, extended)

    def put(self, parameter: Tensor, value: Tensor) -> None:
        """Gathers the parameter for the copy; every rank keeps its part."""
        import deepspeed

        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter.copy_(value)


class _OneParameter(nn.Module):
    """One parameter of zeros: zero.Init partitions the parameters of a module when it is constructed."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))


def whole_weights(model: Any, *, sharded: bool) -> dict[str, Tensor]:
    """All weights of a model by name, in CPU memory on rank 0; empty on other ranks. All ranks must call it.

    Args:
        model: whole or sharded.
        sharded: False if each rank holds the whole model, so that nothing is gathered.
    """
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if not sharded:
        return dict(model.state_dict()) if first else {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if any(is_partitioned(p) for p in parameters.values()):
        import deepspeed

        weights = {}
        for name, parameter in parameters.items():
            with deepspeed.zero.GatheredParameters([parameter]):
                if first:
                    weights[name] = parameter.detach().to("cpu", copy=True)
        buffers = {name: value for name, value in model.state_dict().items() if name not in parameters}
        return {**weights, **buffers} if first else {}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


def plain_class(model: nn.Module) -> type:
    """The class of a model without the one that FSDP2 puts over it."""
    from torch.distributed.fsdp import FSDPModule

    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def layer_lists(model: nn.Module) -> list[str]:
    """The names of the module lists that hold a model's decoder layers."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = []
    for name, module in model.named_modules():
        # The class of a sharded layer derives from the model's class.
        if isinstance(module, nn.ModuleList) and kinds & {base.__name__ for m in module for base in type(m).__mro__}:
            found.append(name)
    return found


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a model, in order."""
    return [layer for name in layer_lists(model) for layer in cast(nn.ModuleList, model.get_submodule(name))]


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 partitions a parameter, so that it is empty outside a gathered forward."""
    return hasattr(parameter, "ds_id")


def local_part(parameter: Any) -> Tensor:
    """The part of a parameter on this rank."""
    if is_partitioned(parameter):
        part: Tensor = parameter.ds_tensor.data
        before = torch.distributed.get_rank() * part.numel()
        return part[: max(0, min(part.numel(), parameter.ds_numel - before))]  # the rest is padding
    found: Tensor = getattr(parameter.data, "to_local", lambda: parameter.data)()
    return found


def global_numel(parameter: nn.Parameter) -> int:
    """The elements of a parameter over all ranks; of a 4-bit parameter, those of the matrix that it encodes."""
    if (state := getattr(parameter, "quant_state", None)) is not None:
        return int(torch.Size(state.shape).numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))
