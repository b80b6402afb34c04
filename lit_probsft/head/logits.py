"""Hidden states times an output weight, and what a model does to the result: logits of a chunk of tokens at a time.

Shapes: N tokens, C of them in a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LOGITS_BUDGET = {"cpu": 32 * 2**20, "cuda": 2**30}
"""Bytes of fp32 logits alive at once. Large chunks read and write dWeight less often, small ones are leaner."""


@dataclass(frozen=True)
class Outputs:
    """What a model says about N tokens before it is multiplied out; constants, no gradient goes through them.

    The logits are soft_cap * tanh(z / soft_cap) with z = logit_scale * (hidden @ weight.T + bias); without a soft cap
    just z. They are fp32 (float64 for float64 input), never rounded to bf16.
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
                f"Outputs: expected hidden (N, H) and weight (V, H), got {tuple(hidden.shape)} and "
                f"{tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"Outputs: expected bias ({weight.shape[0]},), got {tuple(bias.shape)}")

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.weight.shape[0]

    def of(self, rows: Tensor) -> Outputs:
        """Those of some of the tokens, by index."""
        return replace(self, hidden=self.hidden.index_select(0, rows))

    def ready(self) -> Outputs:
        """The same with operands in the dtype in which they are multiplied: widened once, and not with each chunk."""
        operand = operand_dtype(self.hidden, self.weight)
        bias = None if self.bias is None else self.bias.detach().to(result_dtype(operand))
        return replace(
            self, hidden=self.hidden.detach().to(operand), weight=self.weight.detach().to(operand), bias=bias
        )

    def logits(self, rows: slice) -> Tensor:
        """(C, V) of a chunk of the tokens; of `ready` outputs, outside autocast."""
        hidden = self.hidden[rows]
        logits = hidden.new_empty(hidden.shape[0], self.vocabulary, dtype=result_dtype(hidden.dtype))
        multiply(hidden, self.weight.t(), out=logits)
        if self.bias is not None:
            logits += self.bias
        if self.logit_scale != 1.0:
            logits *= self.logit_scale
        if self.soft_cap is not None:
            logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits


def operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """In which they are multiplied: under autocast on CUDA that of a linear layer, on CPUs fp32 at least."""
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if dtype == torch.float64:
        return dtype
    if device == "cuda":
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    return torch.float32  # a narrower product would round its result, and only CUDA multiplies bf16 into fp32


def result_dtype(operand: torch.dtype) -> torch.dtype:
    """Of logits: fp32, or float64 for operands that are."""
    return torch.float64 if operand == torch.float64 else torch.float32


def multiply(left: Tensor, right: Tensor, *, out: Tensor) -> None:
    """A matrix product into `out`, which may be wider than the operands."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(torch.mm(left, right, out_dtype=out.dtype))


def chunk_rows(vocabulary: int, device: str, copies: int = 1) -> int:
    """Tokens of a chunk, so that `copies` tensors of (C, V) in fp32 stay within the budget of the device."""
    budget = LOGITS_BUDGET.get(device, LOGITS_BUDGET["cuda"])
    return max(16, budget // (4 * vocabulary * copies))
