"""Frozen matrices in 4 or 8 bits, by bitsandbytes, beside which adapters are trained (QLoRA, Dettmers et al., arXiv
2305.14314)."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Quantization = Literal["none", "nf4", "int8"]

_SUFFIXES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_NOISE = (
    "Failed to load CPU gemm_4bit_forward",  # a faster kernel for inference, from a hub
    "MatMul8bitLt: inputs will be cast",  # in every layer, at every step
    "The device_map was not initialized",
)


def check_installed() -> None:
    """Refuse at once what could not be loaded.

    Raises:
        UserError: bitsandbytes, or accelerate, through which transformers calls it, is not there.
    """
    try:
        with quiet():
            import accelerate  # noqa: F401
            import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            "model.model.quantization", f'{error.name} is not installed (pip install "lit_probsft[bitsandbytes]")'
        ) from error


def loading_options(quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told: the linear layers inside the decoder layers in 4 bits (normal float, its scales
    quantized again) or 8, the output layer and everything else in `dtype`, in which layers of 4 bits compute too."""
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    }


def settled(model: Any) -> Any:
    """A model as it was read, computing the same in training and in evaluation.

    On CPUs with bf16 instructions the first evaluation would repack layers of 4 bits for inference, in place: they
    would round more, and pass no gradient on.
    """
    for module in model.modules():
        if _is_4bit(module):
            module.support_avx512bf16_for_cpu = False
    return model


def is_quantized(model: nn.Module) -> bool:
    """Does it hold matrices that cannot be trained?"""
    return bool(getattr(model, "is_quantized", False))


def dequantized(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its quantized matrices as numbers, in the dtype of the others.

    Args:
        model: of which the weights are.
        weights: by name; what describes the quantization in it is left out.
    """
    result, dtype = dict(weights), narrowest(model.parameters())
    for name, module in model.named_modules():
        if not quantized_layer(module):
            continue
        described = [f"{name}.weight.{suffix}" for suffix in _SUFFIXES]
        described += [f"{name}.SCB", f"{name}.weight_format"]
        for key in [key for key in result if key in described or key.startswith(f"{name}.weight.quant_state.")]:
            del result[key]
        result[f"{name}.weight"] = plain_matrix(module).to(dtype)
    return result


@torch.no_grad()
def plain_matrix(layer: Any) -> Tensor:
    """(out, in), the matrix of a linear layer as numbers; the layer stays as it is, as peft's own function does not let
    it on CPUs."""
    weight: Tensor = layer.weight.detach()
    if not quantized_layer(layer):
        return weight
    if _is_4bit(layer):
        from bitsandbytes.functional import dequantize_4bit

        found: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return found
    scale = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB  # the first forward moves it
    return torch.div(weight * scale.to(weight.device).view(-1, 1), 127)


def narrowest(tensors: Iterable[Tensor]) -> torch.dtype:
    """Of the dtypes of real numbers among them."""
    return min((t.dtype for t in tensors if t.is_floating_point()), key=lambda dtype: dtype.itemsize)


def quantized_layer(module: nn.Module) -> bool:
    """Is it a linear layer whose matrix is quantized?"""
    return isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state" if _is_4bit(module) else "SCB")


def _is_4bit(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what bitsandbytes and transformers say about it that users cannot act on."""
    silence()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(" + "|".join(_NOISE) + ").*")
        yield


def silence() -> None:
    """From now on; other messages of the same loggers come through."""
    names = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.backends.utils", "bitsandbytes.autograd._functions")
    for name in (*names, "bitsandbytes", "transformers.quantizers.quantizer_bnb_4bit"):
        logger = logging.getLogger(name)
        if _quieten not in logger.filters:
            logger.addFilter(_quieten)


def _quieten(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)
