"""Adds adapters to a model, through peft."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_probsft.errors import UserError
from lit_probsft.head.adapted import ADAPTER, Magnitude
from lit_probsft.model.adapters import belongs_to, is_adapter, peft_name
from lit_probsft.model.lora import LoRA, ends_with, is_tied
from lit_probsft.model.quantization import is_quantized_layer, plain_matrix
from lit_probsft.parallel.seeds import run_seed
from lit_probsft.parallel.sharding import Sharding, decoder_layers
from lit_probsft.storage.adapter_folder import read_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def inject_adapters(model: PreTrainedModel, lora: LoRA, sharding: Sharding | None = None) -> None:
    """Add adapters to `model`, in place, in fp32 at least, and freeze everything else.

    Args:
        model: whole or sharded.
        lora: the options.
        sharding: how the model is sharded; None if it is whole.

    Raises:
        UserError: a name matches no module, or one that cannot be adapted or trained; or the adapters in `lora.start`
            belong to another model.
    """
    from peft import inject_adapter_in_model

    head = model.get_output_embeddings()
    head_name = next(name for name, module in model.named_modules() if module is head)
    _check_targets(model, lora, head_name)
    saved = _saved_modules(model, lora)
    inner = [wanted for wanted in lora.target_names if not ends_with(head_name, wanted)]
    on_head = len(inner) < len(lora.target_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run_seed(lora.seed))
        if inner or not on_head:
            try:
                with _whole_shapes(model):
                    config = lora.peft_config(model, inner or lora.target_modules)
                    # peft would replace these modules by copies and put adapters inside them.
                    config.exclude_modules = [n for n, _ in model.named_modules() if belongs_to(f"{n}.", saved)]
                    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
            except (ValueError, re.error) as error:
                raise _no_targets(model, lora) from error
        if on_head:
            _adapt_head(head, lora)
    _check_injected(model, lora, head)
    if lora.dora:
        _set_magnitudes(model)
    for name, parameter in model.named_parameters():
        adapter = is_adapter(name)
        parameter.requires_grad_(adapter or belongs_to(name, saved))
        if adapter and parameter.dtype.itemsize < 4:  # steps of a small learning rate would round to nothing
            parameter.data = parameter.data.float()
    narrow = model.dtype
    # Both modules of a tied pair get hooks, hence the list before any of them is widened.
    modules = [model.get_submodule(name) for name in saved]
    for module in [m for m in modules if any(p.dtype.itemsize < 4 for p in m.parameters())]:
        _widen(module, model, narrow, sharding)
    if lora.start is not None:
        _load(model, lora, lora.start, sharding)


def _check_targets(model: PreTrainedModel, lora: LoRA, head_name: str) -> None:
    names = [name for name, _ in model.named_modules()]
    for wanted in lora.target_names:  # peft ignores an unknown name if it knows another one
        if not any(ends_with(name, wanted) for name in names):
            raise _no_targets(model, lora)
    if not any(ends_with(head_name, wanted) for wanted in lora.target_names):
        return
    if is_tied(model):
        raise UserError(
            "model.lora.target_modules",
            f"expected no {head_name}, which is tied to the embeddings and would be untied by adapters; "
            f"model.lora.modules_to_save trains both in full; got {lora.target_modules!r}",
        )
    if lora.dropout:
        raise UserError(
            "model.lora.dropout",
            f"expected 0 with adapters of the output layer ({head_name}), because the objective is computed with its "
            f"effective weight, got {lora.dropout}",
        )


def _saved_modules(model: PreTrainedModel, lora: LoRA) -> list[str]:
    """Names of the modules that are trained in full, after checking that they can be."""
    argument = "model.lora.modules_to_save"
    for wanted in lora.modules_to_save:
        found = [module for name, module in model.named_modules() if ends_with(name, wanted)]
        if not any(list(module.parameters()) for module in found):
            raise UserError(argument, f"expected names of modules with weights, such as embed_tokens, got {wanted!r}")
        if any(is_quantized_layer(m) for module in found for m in module.modules()):
            raise UserError(
                argument,
                f"expected modules that are not quantized, because those cannot be trained in full, got {wanted!r}; "
                "name it in target_modules",
            )
        if wanted in lora.target_names:
            raise UserError(
                argument, f"expected modules that are not in model.lora.target_modules, got {wanted!r} in both"
            )
    return lora.saved_modules(model)


def _check_injected(model: PreTrainedModel, lora: LoRA, head: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    if model.get_output_embeddings() is not head:
        raise UserError(
            "model.lora.target_modules", f"expected the output layer in a list of names, got {lora.target_modules!r}"
        )
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not all(isinstance(module.get_base_layer(), nn.Linear | Conv1D) for module in layers):
        raise _no_targets(model, lora)


def _set_magnitudes(model: PreTrainedModel) -> None:
    """Set DoRA's magnitudes to the lengths of the rows; peft's own would be wrong for sharded or quantized matrices."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            weight = _whole_matrix(base)
            lengths = torch.linalg.norm(weight.T if isinstance(base, Conv1D) else weight, dim=1)
            layer.lora_magnitude_vector[ADAPTER].weight = nn.Parameter(lengths)


def _adapt_head(head: Any, lora: LoRA) -> None:
    """Add the output layer's adapters as its children. The layer itself computes with the sum; see `head_weight`."""
    local = getattr(head.weight.data, "to_local", lambda: head.weight)()
    options: Any = {"device": local.device, "dtype": torch.promote_types(local.dtype, torch.float32), "bias": False}
    a, b = nn.Linear(head.in_features, lora.r, **options), nn.Linear(lora.r, head.out_features, **options)
    nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5))
    nn.init.zeros_(b.weight)
    head.lora_A, head.lora_B = nn.ModuleDict({ADAPTER: a}), nn.ModuleDict({ADAPTER: b})
    head.adapter_scaling = lora.scaling
    if lora.dora:
        magnitude = torch.linalg.vector_norm(_whole_matrix(head), dim=1)
        head.lora_magnitude_vector = nn.ModuleDict({ADAPTER: Magnitude(magnitude)})


def _load(model: PreTrainedModel, lora: LoRA, folder: str, sharding: Sharding | None) -> None:
    """Set the adapters and the modules that are trained in full to the values in a folder."""
    values = read_weights(folder, "model.lora.start")
    # peft also stores the base of an adapted embedding or output layer.
    values = {name: value for name, value in values.items() if ".base_layer." not in name}
    parameters = {peft_name(n): p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    for option, adapters in {"target_modules": True, "modules_to_save": False}.items():
        ours, theirs = ({n for n in names if (".lora_" in n) == adapters} for names in (parameters, values))
        if ours != theirs:
            raise UserError(
                f"model.lora.{option}",
                f"expected the modules of the adapters in {folder} ({_modules(theirs)}), "
                f"got {getattr(lora, option)!r} ({_modules(ours)})",
            )
    for name, parameter in parameters.items():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if shape != tuple(values[name].shape):
            raise UserError(
                "model.lora.start",
                f"expected adapters of this model, but {name} in {folder} is {tuple(values[name].shape)} instead of "
                f"{shape}",
            )
        if sharding is not None and ".lora_" not in name:
            sharding.put(parameter, values[name])
        else:
            with torch.no_grad():
                parameter.copy_(values[name])


def _no_targets(model: PreTrainedModel, lora: LoRA) -> UserError:
    from transformers.pytorch_utils import Conv1D

    inside = (pair for layer in decoder_layers(model) for pair in layer.named_modules())
    # peft moves an adapted matrix to the child `base_layer`.
    found = (name.removesuffix(".base_layer") for name, m in inside if isinstance(m, nn.Linear | Conv1D))
    names = sorted({name.rsplit(".", 1)[-1] for name in found if ".lora_" not in name})
    return UserError(
        "model.lora.target_modules",
        f"expected all-linear or a list of names among {', '.join(names)}, got {lora.target_modules!r}",
    )


def _modules(parameters: set[str]) -> str:
    """The last parts of the names of the parameters' modules, for a message."""
    stems = {re.sub(r"\.(lora_.*|weight|bias)$", "", name).rsplit(".", 1)[-1] for name in parameters}
    return ", ".join(sorted(stems)) or "none"


def _whole_matrix(layer: Any) -> Tensor:
    """The layer's matrix, gathered, dequantized and in fp32 at least."""
    weight = plain_matrix(layer)
    weight = getattr(weight, "full_tensor", lambda: weight)()
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _widen(module: nn.Module, model: PreTrainedModel, narrow: torch.dtype, sharding: Sharding | None) -> None:
    """Convert a module to fp32; hooks convert its inputs and outputs from and to the dtype of the other modules."""
    if sharding is not None:
        raise UserError(
            "model.lora.modules_to_save",
            "expected weights in float32 (model.model.dtype) with a strategy that shards them, "
            f"got {str(narrow).removeprefix('torch.')}",
        )
    wide = torch.float32
    for parameter in module.parameters():
        parameter.data = parameter.data.to(wide)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    module.register_forward_pre_hook(lambda _, inputs: tuple(cast(value, wide) for value in inputs))
    if module is not model.get_output_embeddings():  # logits and losses stay in fp32
        module.register_forward_hook(lambda _, __, output: cast(output, narrow))


@contextlib.contextmanager
def _whole_shapes(model: nn.Module) -> Iterator[None]:
    """Within this block, sharded matrices have their whole shape. It takes no memory.

    peft takes a sharded matrix for tensor parallelism and would adapt this rank's shard.
    """
    from torch.distributed.tensor import DTensor
    from transformers.pytorch_utils import Conv1D

    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    sharded: list[tuple[nn.Module, Any]] = [(m, m.weight) for m in linear if isinstance(m.weight.data, DTensor)]
    for module, weight in sharded:
        module.weight = nn.Parameter(weight.to_local().new_zeros(()).expand(weight.shape))
    try:
        yield
    finally:
        for module, weight in sharded:
            module.weight = weight
