"""Low-rank adapters (Hu et al., arXiv 2106.09685) through peft, and merging them into the weights they stand beside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_ADAPTER = "default"


@dataclass(frozen=True)
class LoRA:
    """Train only B A of rank r beside chosen matrices: W + (alpha / r) B A. Everything else is frozen.

    Args:
        r: rank, at least 1.
        alpha: scale of the adapters; B starts at zero, so that training starts at the base model whatever it is.
        dropout: of the adapters' input during training, 0 to 1.
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
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.lora.dropout: expected at least 0 and less than 1, got {self.dropout}")

    @property
    def scaling(self) -> float:
        """alpha / r."""
        return self.alpha / self.r

    def inject(self, model: PreTrainedModel) -> None:
        """Put adapters into `model`, in place, and freeze everything else.

        Raises:
            UserError: no module is meant, or the output layer is.
        """
        from peft import LoraConfig, inject_adapter_in_model

        head = model.get_output_embeddings()
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            task_type="CAUSAL_LM",
        )
        try:
            with torch.random.fork_rng(devices=[]), _looking_whole(model):
                torch.manual_seed(self.seed)
                inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
        except ValueError as error:
            names = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if hasattr(m, "in_features")})
            raise UserError(
                f"model.lora.target_modules: expected all-linear or names among {', '.join(names)}, "
                f"got {self.target_modules!r}"
            ) from error
        if model.get_output_embeddings() is not head:
            raise UserError(
                "model.lora.target_modules: expected modules other than the output layer, whose gradient the objective "
                f"takes itself, got {self.target_modules!r}"
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{_ADAPTER}." in name)


@contextlib.contextmanager
def _looking_whole(model: nn.Module) -> Iterator[None]:
    """peft takes a sharded matrix for tensor parallel and would adapt this rank's slice; for a moment it sees a matrix
    of the whole shape, which takes no memory."""
    from torch.distributed.tensor import DTensor

    slices = [(m, m.weight) for m in model.modules() if isinstance(m, nn.Linear) and isinstance(m.weight.data, DTensor)]
    for module, weight in slices:
        local = weight.to_local()  # type: ignore[attr-defined]
        module._parameters["weight"] = nn.Parameter(local.new_zeros(()).expand(weight.shape))
    try:
        yield
    finally:
        for module, weight in slices:
            module._parameters["weight"] = cast(nn.Parameter, weight)


def merged(weights: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """The state dict of the model without adapters: each adapted W becomes W + scaling * B A, summed in fp32 at least.

    Args:
        weights: by name, as peft names them (`X.base_layer.weight`, `X.lora_A.default.weight` ...); a state dict
            without adapters comes back as it is.
        scaling: alpha / r.
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
            value = (value.to(wide) + scaling * (b @ a)).to(value.dtype)
        result[f"{layer}.{field}" if found else name] = value
    return result
