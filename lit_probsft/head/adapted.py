"""The output weight with its adapters (LoRA, DoRA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from typing_extensions import override

if TYPE_CHECKING:
    from torch import Tensor


ADAPTER = "default"
"""The name of the adapters in peft."""


def adapted_weight(weight: Tensor, change: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """(V, H) -> W + change, in the wider dtype.

    With `magnitude` (V,) each row is scaled to that length (DoRA, Liu et al., arXiv 2402.09353). The length that it is
    divided by is a constant for autograd, as in section 4.3 there.
    """
    whole = weight + change
    if magnitude is None:
        return whole
    lengths: Tensor = torch.linalg.vector_norm(whole.detach(), dim=1)
    return (magnitude / lengths).unsqueeze(1) * whole


class Magnitude(nn.Module):
    """Lengths of the rows of a matrix. A module, because a sharding strategy gathers parameters when a module is
    called."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    @override
    def forward(self, factor: Tensor) -> Tensor:
        return self.weight * factor


def head_weight(head: Any) -> Tensor:
    """(V, H), the output weight with its adapters, if they are there and enabled.

    The adapters are called, not read: a sharding strategy gathers their parameters then.
    """
    if not hasattr(head, "lora_A") or not head.adapters_enabled:
        weight: Tensor = head.weight
        return weight
    a, b = head.lora_A[ADAPTER], head.lora_B[ADAPTER]
    device = head.weight.device
    with torch.autocast(device.type, enabled=False):
        change = head.adapter_scaling * b(a(torch.eye(head.in_features, dtype=a.weight.dtype, device=device))).T
        lengths = getattr(head, "lora_magnitude_vector", None)
        return adapted_weight(head.weight, change, None if lengths is None else lengths[ADAPTER](change.new_ones(())))
