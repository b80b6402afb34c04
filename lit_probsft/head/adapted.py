"""The output weight with adapters added (LoRA, DoRA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


ADAPTER = "default"
"""The name that peft knows the adapters by."""


def adapted_weight(weight: Tensor, change: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """(V, H) -> W + change, in the wider dtype; with `magnitude` (V,) each row has that length (DoRA, Liu et al., arXiv
    2402.09353), the length it is divided by being a constant as in section 4.3 there."""
    whole = weight + change
    if magnitude is None:
        return whole
    lengths: Tensor = torch.linalg.vector_norm(whole.detach(), dim=1)
    return (magnitude / lengths).unsqueeze(1) * whole


class Magnitude(nn.Module):
    """Lengths of the rows of a matrix, as a module: what shards parameters gathers them for a module that is called."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, factor: Tensor) -> Tensor:
        """(V,), times a factor."""
        return self.weight * factor


def head_weight(head: Any) -> Tensor:
    """(V, H), with what its own adapters add. They are called, and not read: whatever shards them gathers them then."""
    if "lora_A" not in head._modules or head._disable_adapters:
        weight: Tensor = head.weight
        return weight
    a, b = head.lora_A[ADAPTER], head.lora_B[ADAPTER]
    device = head.weight.device
    with torch.autocast(device.type, enabled=False):
        change = head.head_scaling * b(a(torch.eye(head.in_features, dtype=a.weight.dtype, device=device))).T
        lengths = getattr(head, "lora_magnitude_vector", None)
        return adapted_weight(head.weight, change, None if lengths is None else lengths[ADAPTER](change.new_ones(())))
