"""Integrals over p of weights that may diverge at p = 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

_PANELS = 40
"""Number of panels, each half as wide as the one above it. The last one starts at 2^-40: a power law shows by then."""
_NODES = 24


def integrate(weight: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """Integral of a non-negative function of p from `low` to `high`, infinite if it diverges towards p = 0.

    Gauss-Legendre on dyadic panels. Below the last panel the function continues as the power law that the last two
    panels show.

    Args:
        weight: maps p, (K,) in fp64, to (K,).
        low: 0 or more.
        high: above `low`, at most 1.
    """
    import numpy as np

    nodes, node_weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(_NODES))
    edges = [high]
    while len(edges) <= _PANELS and edges[-1] > low:
        edges.append(max(low, edges[-1] / 2))
    panels = []
    for right, left in pairwise(edges):
        p = left + (right - left) * (nodes + 1) / 2
        panels.append(float((weight(p) * node_weights).sum() * (right - left) / 2))
    tail = 0.0
    if edges[-1] > low and panels[-1] > 0:
        ratio = panels[-1] / panels[-2]
        tail = math.inf if ratio > 1 - 1e-6 else panels[-1] * ratio / (1 - ratio)
    return math.fsum(panels) + tail
