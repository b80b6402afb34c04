"""A model of which each rank holds a part only: read, drawn or cut so that no rank ever holds the whole."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Sharding(ABC):
    """How a strategy cuts a model."""

    @contextlib.contextmanager
    def reading(self, grow: Callable[[Any], None] | None = None) -> Iterator[dict[str, Any]]:
        """While it lasts `from_pretrained`, given these options, reads this rank's part only.

        Args:
            grow: gives the model rows beyond those of the files, in place, where it has to have them before it is cut.
        """
        yield {}

    def longer(self, parameter: Tensor, rows: int) -> Tensor:
        """A tensor of so many rows that begins with those of `parameter`, cut as that is; the others are zero."""
        return longer(parameter, rows)

    @abstractmethod
    def put(self, parameter: Tensor, value: Tensor) -> None:
        """Give a sharded parameter its values, of which every rank holds the whole at this moment."""

    def whole(self, model: Any) -> Any:
        """Cut a model that is there already; returns it."""
        return model

    def added(self, model: Any) -> None:
        """Cut the parameters that were put into a model after it was cut itself, such as adapters."""
        return


class FullySharded(Sharding):
    """FSDP2: each decoder layer is gathered when it runs; embeddings, norm and output layer form one more unit.

    The units are cut here and not by transformers, whose plan leaves the output layer tied to the embeddings in a unit
    of its own, so that the largest matrix is gathered twice. Reading the slices is left to transformers.

    Args:
        mesh: the ranks that share the model, one dimension.
        compute_bf16: gather and compute in bf16, with gradients reduced in fp32; the slices stay fp32.
        cpu_offload: slices live in the host's memory and visit the device layer by layer.
    """

    def __init__(self, mesh: DeviceMesh, *, compute_bf16: bool, cpu_offload: bool) -> None:
        self.mesh = mesh
        self.compute_bf16, self.cpu_offload = compute_bf16, cpu_offload

    @contextlib.contextmanager
    def reading(self, grow: Callable[[Any], None] | None = None) -> Iterator[dict[str, Any]]:
        """transformers cuts the empty model as we do, and then reads each rank's slices. One device reads it all."""
        if self.mesh.size() == 1:
            yield {}
            return
        from transformers import PreTrainedModel
        from transformers.distributed import DistributedConfig

        def cut(_: type, model: Any, *__: Any) -> Any:
            model.config.distributed_config = None  # it is no part of the model
            if grow is not None:
                grow(model)
            return self.whole(model)

        PreTrainedModel.maybe_distribute_model = classmethod(cut)
        try:
            with contextlib.nullcontext() if grow is None else _short_files():
                yield {"distributed_config": DistributedConfig(fsdp_size=self.mesh.size())}
        finally:
            del PreTrainedModel.maybe_distribute_model  # the inherited one is back

    def whole(self, model: Any) -> Any:
        """Cut in place a model that is whole, or on the meta device."""
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if isinstance(model, FSDPModule):
            return model
        model.tie_weights()  # before a unit is told which of its parameters are one
        for layer in decoder_layers(model):
            fully_shard(layer, **self._options)
        fully_shard(model, **self._options)
        return model

    def added(self, model: Any) -> None:
        """A unit for each adapted matrix, whose own slices stay where they are: in its layer's unit, or the root."""
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
        """Keep this rank's slice."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        with torch.no_grad():
            if not isinstance(parameter.data, DTensor):
                parameter.copy_(value)
                return
            sharded = distribute_tensor(
                value.to(parameter.device_mesh.device_type),  # type: ignore[attr-defined]
                parameter.device_mesh,  # type: ignore[attr-defined]
                parameter.placements,  # type: ignore[attr-defined]
                src_data_rank=None,  # every rank has drawn the same
            )
            parameter.data.to_local().copy_(sharded.to_local())


class Partitioned(Sharding):
    """ZeRO-3. transformers itself partitions what it reads, as long as the configuration of DeepSpeed is alive."""

    def longer(self, parameter: Tensor, rows: int) -> Tensor:
        """Both gathered for as long as it takes; every rank keeps its part."""
        import deepspeed
        from transformers.integrations.deepspeed import deepspeed_config

        shape = (rows, *parameter.ds_shape[1:])  # type: ignore[attr-defined]
        with deepspeed.zero.Init(config_dict_or_path=deepspeed_config()):
            grown: Any = _Alone(shape, parameter.dtype).parameter
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter, grown], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                grown[: len(parameter)] = parameter
        grown.requires_grad_(parameter.requires_grad)
        return cast(Tensor, grown)

    def put(self, parameter: Tensor, value: Tensor) -> None:
        """Gathered for as long as it takes; every rank keeps its part."""
        import deepspeed

        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter.copy_(value)


def longer(value: Tensor, rows: int) -> Tensor:
    """The rows of a whole tensor with zeros behind them, `rows` in all."""
    return torch.cat([value.detach(), value.new_zeros(rows - len(value), *value.shape[1:])])


class _Alone(nn.Module):
    """One parameter of zeros: zero.Init partitions what a module has when it is constructed."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))


class _Padded:
    """A tensor in a file, with zeros behind its rows."""

    def __init__(self, source: Any, rows: int) -> None:
        self._source, self._rows = source, rows

    def get_shape(self) -> list[int]:
        return [self._rows, *self._shape[1:]]

    @property
    def _shape(self) -> list[int]:
        return list(self._source.shape) if isinstance(self._source, Tensor) else list(self._source.get_shape())

    def __getitem__(self, places: tuple[slice, ...]) -> Tensor:
        rows, *rest = places
        end = self._shape[0]
        part: Tensor = self._source[(slice(min(rows.start, end), min(rows.stop, end)), *rest)]
        return longer(part, rows.stop - rows.start)


@contextlib.contextmanager
def _short_files() -> Iterator[None]:
    """While it lasts, a tensor in a file may have fewer rows than its place in the model: zeros follow them."""
    from transformers.distributed.sharding_utils import DtensorShardOperation

    read = DtensorShardOperation.shard_tensor

    def padded(operation: Any, source: Any, tensor_idx: int | None = None, **options: Any) -> Any:
        shape = list(source.shape) if isinstance(source, Tensor) else source.get_shape()
        if tensor_idx is None and shape and shape[0] < operation._axis0_size:
            source = _Padded(source, operation._axis0_size)
        return read(operation, source, tensor_idx=tensor_idx, **options)

    DtensorShardOperation.shard_tensor = padded
    try:
        yield
    finally:
        DtensorShardOperation.shard_tensor = read


def whole_weights(model: Any, *, sharded: bool) -> dict[str, Tensor]:
    """All weights of a model by name, on rank 0 in the host's memory; empty on the others, which must call it too.

    Args:
        model: whole, or in slices.
        sharded: False where each rank holds the whole model, as nothing has to be gathered then.
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
    """The model's own class, beneath what FSDP2 has put over it."""
    from torch.distributed.fsdp import FSDPModule

    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def layer_lists(model: nn.Module) -> list[str]:
    """Names of the module lists that hold a model's decoder layers."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = []
    for name, module in model.named_modules():
        # A sharded layer has a class of its own above the model's.
        if isinstance(module, nn.ModuleList) and kinds & {base.__name__ for m in module for base in type(m).__mro__}:
            found.append(name)
    return found


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a model, in their order."""
    return [layer for name in layer_lists(model) for layer in cast(nn.ModuleList, model.get_submodule(name))]


def is_partitioned(parameter: Tensor) -> bool:
    """Does ZeRO-3 hold it in parts, so that outside a gathered forward it is empty?"""
    return hasattr(parameter, "ds_id")


def local_part(parameter: Any) -> Tensor:
    """What this rank holds of a parameter."""
    if is_partitioned(parameter):
        part: Tensor = parameter.ds_tensor.data
        before = torch.distributed.get_rank() * part.numel()
        return part[: max(0, min(part.numel(), parameter.ds_numel - before))]  # behind them lies nothing of ours
    found: Tensor = getattr(parameter.data, "to_local", lambda: parameter.data)()
    return found


def global_numel(parameter: nn.Parameter) -> int:
    """Elements of a parameter over all ranks; of the matrix that 4 bits stand for."""
    if (state := getattr(parameter, "quant_state", None)) is not None:
        return int(torch.Size(state.shape).numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))
