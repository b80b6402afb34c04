"""Logits of a chunk of tokens: hidden states times the output weight, and what a model does to the result.

Shapes: N supervised tokens, C of them in a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LOGITS_BUDGET = {"cpu": 32 * 2**20, "cuda": 2**30}
"""Bytes of fp32 logits alive at once. Large chunks read and write dWeight less often; small chunks take less memory."""


@dataclass(frozen=True)
class Outputs:
    """A model's predictions for N tokens before the product with the output weight.

    The logits are soft_cap * tanh(z / soft_cap) with z = logit_scale * (hidden @ weight.T + bias); without a soft cap
    just z. They are fp32 (float64 for float64 input), never rounded to bf16.

    Raises:
        ValueError: the shapes do not match.
    """

    hidden: Tensor
    """(N, H), the last hidden states."""
    weight: Tensor
    """(V, H), the output embedding."""
    bias: Tensor | None = None
    """(V,)."""
    logit_scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        hidden, weight, bias = self.hidden, self.weight, self.bias
        if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
            raise ValueError(
                f"expected hidden (N, H) and weight (V, H), got {tuple(hidden.shape)} and {tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"expected bias ({weight.shape[0]},), got {tuple(bias.shape)}")

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    def select(self, tokens: Tensor) -> Outputs:
        """The outputs of some of the tokens, by index."""
        return replace(self, hidden=self.hidden.index_select(0, tokens))

    def ready(self) -> Outputs:
        """The same outputs, detached and in the dtype in which they are multiplied, so that no chunk casts them."""
        dtype = operand_dtype(self.hidden, self.weight)
        bias = None if self.bias is None else self.bias.detach().to(result_dtype(dtype))
        return replace(self, hidden=self.hidden.detach().to(dtype), weight=self.weight.detach().to(dtype), bias=bias)

    def logits(self, rows: slice) -> Tensor:
        """(C, V), the logits of a chunk. Call it on `ready` outputs, outside autocast."""
        hidden = self.hidden[rows]
        logits = hidden.new_empty(hidden.shape[0], self.vocabulary, dtype=result_dtype(hidden.dtype))
        self.write_logits(rows, logits)
        return logits

    def write_logits(self, rows: slice, out: Tensor, *, with_slope: bool = False) -> Tensor | None:
        """Write the logits of a chunk into `out` (C, V).

        Returns:
            The slope of the soft cap, (C, V), if it is asked for and the model has a soft cap.
        """
        multiply(self.hidden[rows], self.weight.t(), out=out)
        if self.bias is not None:
            out += self.bias
        if self.logit_scale != 1.0:
            out *= self.logit_scale
        if self.soft_cap is None:
            return None
        out.div_(self.soft_cap).tanh_()
        slope = 1 - out.square() if with_slope else None
        out *= self.soft_cap
        return slope


def operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which the two are multiplied: at least fp32 on CPUs; on CUDA, that of a linear layer."""
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if dtype == torch.float64:
        return dtype
    if device == "cuda":
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    return torch.float32  # only CUDA multiplies bf16 into fp32; elsewhere a bf16 product would be rounded


def result_dtype(operand: torch.dtype) -> torch.dtype:
    """The dtype of the logits: fp32, or float64 for float64 operands."""
    return torch.float64 if operand == torch.float64 else torch.float32


def multiply(left: Tensor, right: Tensor, *, out: Tensor) -> None:
    """Write a matrix product into `out`, whose dtype may be wider than the operands'."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(torch.mm(left, right, out_dtype=out.dtype))


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to `total`, whose dtype may be wider than the operands'."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right, out_dtype=total.dtype)


def chunk_rows(vocabulary: int, device: str, copies: int = 1) -> int:
    """Tokens of a chunk such that `copies` fp32 tensors of (C, V) fit into the device's budget."""
    budget = LOGITS_BUDGET.get(device, LOGITS_BUDGET["cuda"])
    return max(16, budget // (4 * vocabulary * copies))
