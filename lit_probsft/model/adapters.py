"""Adapters in a model's weights: their names, switching them off, merging them, and writing peft's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_probsft.head.adapted import ADAPTER, adapted_weight
from lit_probsft.head.layer import ObjectiveHead
from lit_probsft.storage.adapter_folder import WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor


_PREFIX = "base_model.model."
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within this block, `model` computes what it computes without adapters. They have to be enabled before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer | ObjectiveHead)]
    requires_grad = [(p, p.requires_grad) for p in model.parameters()]

    def switch(enabled: bool) -> None:
        for layer in layers:
            layer.enable_adapters(enabled)
        # peft's switch also changes which parameters require a gradient, and sharding strategies rely on that.
        for parameter, required in requires_grad:
            parameter.requires_grad_(required)

    switch(False)
    try:
        yield
    finally:
        switch(True)


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter, by its name."""
    return any(f".{part}.{ADAPTER}" in name for part in _PARTS)


def belongs_to(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of these modules, by its name."""
    return any(f".{module}." in f".{name}" for module in modules)


def merge_adapters(
    weights: Mapping[str, Tensor], scaling: float, transposed: Collection[str] = ()
) -> dict[str, Tensor]:
    """The state dict of the model without adapters.

    Each adapted W becomes W + scaling * B A, with DoRA scaled to the trained row lengths. It is computed in fp32 at
    least and rounded once.

    Args:
        weights: by peft's names (`X.base_layer.weight`, `X.lora_A.default.weight` ...); a base weight may also have its
            plain name, `X.weight`. A state dict without adapters is returned unchanged.
        scaling: alpha / r.
        transposed: names of the modules that store W as (in, out); see `stored_transposed`.
    """
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        if is_adapter(name):
            continue
        name = name.replace(".base_layer.", ".")
        layer, _, field = name.rpartition(".")
        a, b, magnitude = (weights.get(f"{layer}.{part}.{ADAPTER}.weight") for part in _PARTS)
        if field == "weight" and a is not None and b is not None:
            wide = torch.promote_types(value.dtype, torch.float32)
            change = scaling * (b.to(wide) @ a.to(wide))
            whole = value.to(wide).T if layer in transposed else value.to(wide)
            whole = adapted_weight(whole, change, None if magnitude is None else magnitude.to(wide))
            value = (whole.T.contiguous() if layer in transposed else whole).to(value.dtype)
        result[name] = value
    return result


def stored_transposed(model: nn.Module) -> set[str]:
    """Names of the modules that store their matrix as (in, out), as GPT-2 does."""
    from transformers.pytorch_utils import Conv1D

    return {name for name, module in model.named_modules() if isinstance(module, Conv1D)}


def write_adapter(folder: Path, weights: Mapping[str, Tensor], config: Any) -> None:
    """Write adapters without their base, as `peft.PeftModel.from_pretrained` reads them.

    Args:
        folder: an empty folder.
        weights: of the adapters, and of the modules that are trained in full, by name.
        config: a `peft.LoraConfig`.
    """
    from safetensors.torch import save_file

    stored = {peft_name(name): value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})


def peft_name(name: str) -> str:
    """The name under which peft stores a parameter."""
    name = name.replace(f".lora_magnitude_vector.{ADAPTER}.weight", ".lora_magnitude_vector")
    return _PREFIX + name.replace(f".{ADAPTER}.", ".").replace(".base_layer.", ".")
