"""Frozen matrices in 4 or 8 bits, through bitsandbytes, for QLoRA (Dettmers et al., arXiv 2305.14314)."""

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
    "MatMul8bitLt: inputs will be cast",  # appears in every layer, at every step
    "The device_map was not initialized",
)


def check_installed() -> None:
    """Check that the libraries are installed.

    Raises:
        UserError: bitsandbytes is missing, or accelerate, through which transformers calls it.
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
    """Arguments of `from_pretrained`.

    They quantize the linear layers inside the decoder layers to 4 bits (normal float, with quantized scales) or 8. The
    output layer and everything else stay in `dtype`, in which 4-bit layers also compute.
    """
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


def without_repacking(model: Any) -> Any:
    """The same model, computing the same in training and in evaluation.

    On CPUs with bf16 instructions, the first evaluation would repack 4-bit layers for inference, in place. They would
    then round more and pass no gradient on.
    """
    for module in model.modules():
        if _is_4bit(module):
            module.support_avx512bf16_for_cpu = False
    return model


def is_quantized(model: nn.Module) -> bool:
    """Whether some of the model's matrices are quantized, and so cannot be trained."""
    return bool(getattr(model, "is_quantized", False))


def dequantized(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which quantized matrices are dequantized to the dtype of the other weights.

    Args:
        model: the model of the weights.
        weights: by name; entries that describe the quantization are dropped.
    """
    result, dtype = dict(weights), narrowest_dtype(model.parameters())
    for name, module in model.named_modules():
        if not is_quantized_layer(module):
            continue
        described = [f"{name}.weight.{suffix}" for suffix in _SUFFIXES]
        described += [f"{name}.SCB", f"{name}.weight_format"]
        for key in [key for key in result if key in described or key.startswith(f"{name}.weight.quant_state.")]:
            del result[key]
        result[f"{name}.weight"] = plain_matrix(module).to(dtype)
    return result


@torch.no_grad()
def plain_matrix(layer: Any) -> Tensor:
    """(out, in), the matrix of a linear layer, dequantized. peft's own function would change the layer on CPUs."""
    weight: Tensor = layer.weight.detach()
    if not is_quantized_layer(layer):
        return weight
    if _is_4bit(layer):
        from bitsandbytes.functional import dequantize_4bit

        found: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return found
    scale = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB  # the first forward moves the scales
    return torch.div(weight * scale.to(weight.device).view(-1, 1), 127)


def narrowest_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The narrowest floating-point dtype among the tensors."""
    return min((t.dtype for t in tensors if t.is_floating_point()), key=lambda dtype: dtype.itemsize)


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether a module is a linear layer with a quantized matrix."""
    return isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state" if _is_4bit(module) else "SCB")


def _is_4bit(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within this block, hide messages about quantization that users cannot act on."""
    silence()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(" + "|".join(_NOISE) + ").*")
        yield


def silence() -> None:
    """Hide such log messages from now on; the same loggers still show others."""
    names = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.backends.utils", "bitsandbytes.autograd._functions")
    for name in (*names, "bitsandbytes", "transformers.quantizers.quantizer_bnb_4bit"):
        logger = logging.getLogger(name)
        if _is_useful not in logger.filters:
            logger.addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)
