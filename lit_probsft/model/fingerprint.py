"""A fingerprint of a model's weights."""

from __future__ import annotations

import hashlib
import json

import torch

from lit_probsft.parallel.sharding import is_partitioned, local_part


def fingerprint(model: torch.nn.Module, device: torch.device) -> str:
    """The same string for the same weights, whole or sharded over any number of ranks. All ranks have to call it.

    Args:
        model: with its parameters; shared ones count once.
        device: on which the ranks communicate.
    """
    weights, sums = dict(model.named_parameters()), []
    for name in sorted(weights):
        local = local_part(weights[name])
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[local.element_size()]
        sums.append(local.contiguous().view(bits).sum(dtype=torch.int64).to(device))  # exact in any order
    total = torch.stack(sums)
    if any(hasattr(weight.data, "to_local") or is_partitioned(weight) for weight in weights.values()):
        torch.distributed.all_reduce(total)
    content = json.dumps([sorted(weights), total.tolist()])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
