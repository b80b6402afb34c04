"""Low-rank adapters (Hu et al., arXiv 2106.09685) through peft, and merging them into the weights they stand beside."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_probsft.errors import UserError
from lit_probsft.parallel.sharding import decoder_layers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_ADAPTER = "default"


@dataclass(frozen=True)
class LoRA:
    """Train only B A of rank r beside chosen matrices: W + (alpha / r) B A. Everything else is frozen.

    Args:
        r: rank, at least 1.
        alpha: scale of the adapters, above 0. B starts at zero, so that training starts at the base model.
        dropout: of the adapters' input during training, at least 0 and less than 1.
        target_modules: `all-linear` for every linear layer inside the decoder layers, or names of modules, such as
            `[q_proj, v_proj]`. The output layer cannot be adapted.
        seed: of A's initial values.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"model.lora.r: expected at least 1, got {self.r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"model.lora.alpha: expected more than 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.lora.dropout: expected at least 0 and less than 1, got {self.dropout}")

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return self.alpha / self.r

    def inject(self, model: PreTrainedModel) -> None:
        """Put adapters into `model`, in place, in fp32 at least, and freeze everything else.

        Raises:
            UserError: a name means no module, or one that is not linear, or the output layer.
        """
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
        from transformers.pytorch_utils import Conv1D

        names = [name for name, _ in model.named_modules()]
        given = [] if isinstance(self.target_modules, str) else self.target_modules
        for wanted in given:  # peft passes over a name beside one that it knows
            if not any(f".{name}".endswith(f".{wanted}") for name in names):
                raise self._no_targets(model)
        head = model.get_output_embeddings()
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            task_type="CAUSAL_LM",
        )
        try:
            with torch.random.fork_rng(devices=[]), _looking_whole(model):
                torch.manual_seed(self.seed)
                inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
        except (ValueError, re.error) as error:
            raise self._no_targets(model) from error
        if model.get_output_embeddings() is not head:
            raise UserError(
                "model.lora.target_modules: expected modules other than the output layer, whose gradient the objective "
                f"takes itself, got {self.target_modules!r}"
            )
        adapted = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
        if not all(isinstance(module, nn.Linear | Conv1D) for module in adapted):
            raise self._no_targets(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(adapter := f".{_ADAPTER}." in name)
            if adapter and parameter.dtype.itemsize < 4:  # steps of a small learning rate would round to nothing
                parameter.data = parameter.data.float()

    def _no_targets(self, model: PreTrainedModel) -> UserError:
        from transformers.pytorch_utils import Conv1D

        inside = (pair for layer in decoder_layers(model) for pair in layer.named_modules())
        # An adapted module holds its matrix one level below.
        found = (name.removesuffix(".base_layer") for name, m in inside if isinstance(m, nn.Linear | Conv1D))
        names = sorted({name.rsplit(".", 1)[-1] for name in found if ".lora_" not in name})
        return UserError(
            f"model.lora.target_modules: expected all-linear or a list of names among {', '.join(names)}, "
            f"got {self.target_modules!r}"
        )


@contextlib.contextmanager
def _looking_whole(model: nn.Module) -> Iterator[None]:
    """peft takes a sharded matrix for tensor parallel and would adapt this rank's slice; for a moment it sees a matrix
    of the whole shape, which takes no memory."""
    from torch.distributed.tensor import DTensor
    from transformers.pytorch_utils import Conv1D

    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    slices: list[tuple[nn.Module, Any]] = [(m, m.weight) for m in linear if isinstance(m.weight.data, DTensor)]
    for module, weight in slices:
        local = weight.to_local()
        module._parameters["weight"] = nn.Parameter(local.new_zeros(()).expand(weight.shape))
    try:
        yield
    finally:
        for module, weight in slices:
            module._parameters["weight"] = weight


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """While it lasts `model` computes what it did without adapters.

    peft's own switch would also change which parameters take a gradient, which sharding strategies have taken note of.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer._disable_adapters = state


def merged(weights: Mapping[str, Tensor], scaling: float, transposed: Collection[str] = ()) -> dict[str, Tensor]:
    """The state dict of the model without adapters: each adapted W becomes W + scaling * B A, summed in fp32 at least.

    Args:
        weights: by name, as peft names them (`X.base_layer.weight`, `X.lora_A.default.weight` ...); a state dict
            without adapters comes back as it is.
        scaling: alpha / r.
        transposed: names of the modules that keep W as (in, out); see `stored_transposed`.
    """
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        layer, found, field = name.rpartition(".base_layer.")
        if found and field == "weight":
            wide = torch.promote_types(value.dtype, torch.float32)
            a = weights[f"{layer}.lora_A.{_ADAPTER}.weight"].to(wide)
            b = weights[f"{layer}.lora_B.{_ADAPTER}.weight"].to(wide)
            change = scaling * (b @ a)
            value = (value.to(wide) + (change.T if layer in transposed else change)).to(value.dtype)
        result[f"{layer}.{field}" if found else name] = value
    return result


def stored_transposed(model: nn.Module) -> set[str]:
    """Names of the modules that keep their matrix as (in, out), as GPT-2 does."""
    from transformers.pytorch_utils import Conv1D

    return {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
