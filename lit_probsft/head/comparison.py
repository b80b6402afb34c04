"""Compares two models' distributions over the same tokens, chunk by chunk, without an (N, V) tensor.

Shapes: N supervised tokens, C of them in a chunk, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_probsft.head.checks import IGNORE_INDEX
from lit_probsft.head.logits import Outputs, chunk_rows


@dataclass(frozen=True)
class Comparison:
    """How two models A and B differ on N tokens: (N,) each, in nats, 0 where the label is ignored."""

    forward_kl: Tensor
    """KL(A || B): the sum over the vocabulary of a (log a - log b)."""
    reverse_kl: Tensor
    """KL(B || A)."""
    js: Tensor
    """Jensen-Shannon divergence, the mean of KL(A || M) and KL(B || M) for the mean M of both; 0 to log 2."""
    log_probs_a: Tensor
    """log p of the labels under A."""
    log_probs_b: Tensor
    """The same under B."""


@torch.no_grad()
def compare_outputs(a: Outputs, b: Outputs, labels: Tensor, *, chunk_size: int | None = None) -> Comparison:
    """Compare two models over the whole vocabulary, without a gradient.

    Sums over the vocabulary are computed in double if the device has it: the distributions may be nearly equal, and
    the terms of a divergence have both signs.

    Args:
        a: the first model's outputs.
        b: the second model's outputs; the hidden size may differ, the vocabulary may not.
        labels: (N,), token ids, or -100 to ignore the row.
        chunk_size: rows of logits alive at once; None derives it from `LOGITS_BUDGET` of the device.

    Raises:
        ValueError: the two differ in their number of tokens or their vocabulary, or `chunk_size` is not positive.
    """
    if a.vocabulary != b.vocabulary:
        raise ValueError(
            f"compare_outputs: expected models with the same vocabulary, got {a.vocabulary} and {b.vocabulary} tokens"
        )
    if not len(a.hidden) == len(b.hidden) == len(labels):
        got = f"{len(a.hidden)}, {len(b.hidden)} and {len(labels)}"
        raise ValueError(f"compare_outputs: expected as many hidden states of both models as labels, got {got}")
    if chunk_size is not None and chunk_size <= 0:
        raise ValueError(f"compare_outputs: expected chunk_size above 0, got {chunk_size}")
    count, kept = len(labels), (labels != IGNORE_INDEX).nonzero().squeeze(-1)
    a, b, labels = a.select(kept).ready(), b.select(kept).ready(), labels[kept]
    device = labels.device.type
    wide = torch.float32 if device == "mps" else torch.float64
    chunk = chunk_size or chunk_rows(a.vocabulary, device, copies=10)  # five tensors in double
    result = torch.empty(5, len(labels), dtype=wide, device=labels.device)
    with torch.autocast(device, enabled=False):
        for start in range(0, len(labels), chunk):
            rows = slice(start, start + chunk)
            log_a, log_b = (outputs.logits(rows).to(wide).log_softmax(-1) for outputs in (a, b))
            result[:, rows] = _compare_chunk(log_a, log_b, labels[rows])
    return Comparison(*result.new_zeros(5, count).index_copy(1, kept, result))


def _compare_chunk(log_a: Tensor, log_b: Tensor, labels: Tensor) -> Tensor:
    """(C, V) log-probabilities of both models -> (5, C), in the order of `Comparison`."""
    p_a, p_b, target = log_a.exp(), log_b.exp(), labels.unsqueeze(-1)
    gap, middle = log_a - log_b, torch.logaddexp(log_a, log_b) - math.log(2)
    js = ((log_a - middle) * p_a + (log_b - middle) * p_b).sum(-1) / 2
    divergences = (p_a * gap).sum(-1), -(p_b * gap).sum(-1), js
    return torch.stack([*divergences, log_a.gather(-1, target).squeeze(-1), log_b.gather(-1, target).squeeze(-1)])
