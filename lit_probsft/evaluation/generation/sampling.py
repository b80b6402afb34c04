"""Chooses the next token of each answer."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) that depends on the seed and the step alone, so that an answer can go on in another batch.

    It has 24 bits and is exact in fp32.
    """
    return int.from_bytes(blake2b(b"%d %d" % (seed, step), digest_size=3).digest()) / 2**24


def choose(logits: Tensor, temperatures: Sequence[float], numbers: Sequence[float], top_p: float = 1.0) -> list[int]:
    """Choose a token for each row.

    At temperature 0 it is the arg max of the fp32 logits. Otherwise the row's number is looked up in the cumulative
    distribution of the tokens in the order of their ids, after temperature and `top_p`. Rows do not affect each other.

    Args:
        logits: (B, V).
        temperatures: (B,), each 0 or more.
        numbers: (B,), each in [0, 1).
        top_p: tokens are drawn from the smallest set of the most probable ones that has this mass.
    """
    logits = logits.float()
    chosen = logits.argmax(-1)
    sampled = [row for row, temperature in enumerate(temperatures) if temperature > 0]
    if not sampled:
        return chosen.tolist()
    limits = torch.finfo(torch.float32)  # beyond them a temperature is 0 or infinite
    rows = torch.tensor(sampled, device=logits.device)
    temperature, number = (
        torch.tensor([values[row] for row in sampled], device=logits.device, dtype=torch.float32).unsqueeze(1)
        for values in (temperatures, numbers)
    )
    logits = logits[rows]
    p = ((logits - logits.amax(-1, keepdim=True)) / temperature.clamp(limits.tiny, limits.max)).softmax(-1)
    if top_p < 1:
        ordered, order = torch.sort(p, dim=-1, descending=True, stable=True)
        ordered[ordered.cumsum(-1) - ordered >= max(top_p, limits.tiny)] = 0
        p = torch.zeros_like(p).scatter(-1, order, ordered)
    mass = p.cumsum(-1)
    # Below the whole mass even after rounding, so that the token found has a probability above 0.
    total = mass[:, -1:]
    wanted = torch.minimum(number * total, total.nextafter(torch.zeros_like(total)))
    chosen[rows] = torch.searchsorted(mass, wanted, right=True).squeeze(-1).clamp(max=p.shape[-1] - 1)
    return chosen.tolist()
