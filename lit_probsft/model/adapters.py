"""What adapters make of the weights they stand beside: computed, switched off, merged; and peft's folder of adapters
alone, written and read."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_probsft.head.adapted import ADAPTER, adapted_weight
from lit_probsft.storage.adapter_folder import WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor


_PREFIX = "base_model.model."
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """While it lasts `model` computes what it did without adapters.

    peft's own switch would also change which parameters take a gradient, which sharding strategies have taken note of.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer) or hasattr(m, "head_scaling")]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer._disable_adapters = state


def is_adapter(name: str) -> bool:
    """Is it a parameter of an adapter?"""
    return any(f".{part}.{ADAPTER}" in name for part in _PARTS)


def merged(weights: Mapping[str, Tensor], scaling: float, transposed: Collection[str] = ()) -> dict[str, Tensor]:
    """The state dict of the model without adapters: each adapted W becomes W + scaling * B A, its rows of the learnt
    length where adapters have one; computed in fp32 at least and rounded once.

    Args:
        weights: by name, as peft names them (`X.base_layer.weight`, `X.lora_A.default.weight` ...); a state dict
            without adapters comes back as it is. A base weight may also have the plain name `X.weight`.
        scaling: alpha / r.
        transposed: names of the modules that keep W as (in, out); see `stored_transposed`.
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
    """Names of the modules that keep their matrix as (in, out), as GPT-2 does."""
    from transformers.pytorch_utils import Conv1D

    return {name for name, module in model.named_modules() if isinstance(module, Conv1D)}


# --- peft's folder


def write_adapter(folder: Path, weights: Mapping[str, Tensor], config: Any, whole: Sequence[str]) -> None:
    """Write adapters alone, as `peft.PeftModel.from_pretrained` reads them.

    Args:
        folder: an empty one.
        weights: the model's, by name, adapters among them.
        config: a `peft.LoraConfig`.
        whole: names of the modules that are stored whole.
    """
    from safetensors.torch import save_file

    kept = {name: value for name, value in weights.items() if is_adapter(name) or within(name, whole)}
    stored = {peft_name(name): value.detach().cpu().contiguous().clone() for name, value in kept.items()}
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})


def peft_name(name: str) -> str:
    """Under which name peft stores a parameter."""
    name = name.replace(f".lora_magnitude_vector.{ADAPTER}.weight", ".lora_magnitude_vector")
    return _PREFIX + name.replace(f".{ADAPTER}.", ".").replace(".base_layer.", ".")


def within(name: str, modules: Sequence[str]) -> bool:
    """Is it a parameter of one of these modules?"""
    return any(f".{name}".find(f".{module}.") >= 0 for module in modules)
