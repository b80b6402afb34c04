"""The losses of a chunk of tokens and their gradient on the logits.

Shapes: C tokens in a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.head.logits import Outputs
from lit_probsft.head.token_loss import TokenLoss
from lit_probsft.objectives.base import TokenStats, derivative

RETURNED = ("entropy", "log_complement", "top_token")
"""Statistics that the head returns for each token if they are needed, in the order of `HeadOutput`."""

_CACHED_LOGITS = 2**18
"""Logits that a CPU keeps in its cache through all the passes over them."""


@dataclass(frozen=True)
class LossInputs:
    """Everything that the losses of all chunks are computed from, except the logits. N tokens."""

    token_loss: TokenLoss
    context: Mapping[str, Any]
    labels: Tensor
    """(N,)."""
    token_weight: Tensor | None
    """(N,)."""
    reference: Outputs | None
    """`ready` outputs of the reference, if the objective reads them."""


class ChunkLoss(NamedTuple):
    """Losses, statistics and gradient of a chunk."""

    log_probs: Tensor
    losses: Tensor
    correct: Tensor
    top_prob: Tensor
    needed: list[Tensor]
    """The statistics in `RETURNED` that are needed."""
    d_logits: Tensor | None = None
    """(C, V), the gradient, still to be multiplied by `scale` per row; None if no gradient is wanted."""
    scale: Tensor | None = None
    """(C,); applying it to (C, H) is cheaper than to (C, V)."""

    @property
    def statistics(self) -> list[Tensor]:
        """(C,) each, in the order of `HeadOutput`."""
        return [self.log_probs, self.losses, self.correct, self.top_prob, *self.needed]


def gradient_through_log_probs(logits: Tensor, rows: slice, inputs: LossInputs, wanted: bool) -> ChunkLoss:
    """For an objective that differentiates log p alone; overwrites `logits` (C, V).

    With e = exp(logits - max), S their sum and R that sum without the target, softmax - onehot is e / S, and -R / S at
    the target: the target's entry and log p keep their digits where p is near 1.
    """
    labels = inputs.labels[rows].unsqueeze(-1)
    others, gap, sums = _exponentiate(logits, labels, inputs.token_loss)
    total = others + gap.exp()
    log_probs = torch.where(gap == 0, -torch.log1p(others), gap - total.log())
    fields: dict[str, Any] = {}
    if "entropy" in sums:
        fields["entropy"] = total.log() + sums["entropy"] / total
    if "collision" in sums:
        fields["collision"] = sums["collision"] / total.square()
    if "top_entropy" in sums:
        fields["top_entropy"] = sums["top_entropy"]
    if "top_token" in sums:
        fields["top_token"] = sums["top_token"]
    if "log_complement" in inputs.token_loss.needs:
        fields["log_complement"] = others.log() - total.log()
    if inputs.reference is not None:
        fields["reference_log_probs"] = _label_log_probs(inputs.reference.logits(rows), labels).to(log_probs.dtype)
    # The largest term of the sum is 1, hence the largest probability 1 / S.
    correct, top_prob, needed = gap == 0, total.reciprocal(), _needed(fields)
    if not wanted:  # inference mode would not let log_probs require a gradient
        return ChunkLoss(log_probs, _losses(inputs, log_probs, fields), correct, top_prob, needed)
    with torch.enable_grad():
        log_probs = log_probs.requires_grad_()
        losses = _losses(inputs, log_probs, fields)
        steepness = -derivative(losses, log_probs)
    if inputs.token_weight is not None:
        steepness = steepness * inputs.token_weight[rows]
    logits.scatter_(-1, labels, -others.unsqueeze(-1))
    scale = steepness / total
    return ChunkLoss(log_probs.detach(), losses.detach(), correct, top_prob, needed, logits, scale)


def _exponentiate(logits: Tensor, labels: Tensor, token_loss: TokenLoss) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Replace `logits` (C, V) by e = exp(logits - max), and by 0 at the labels (C, 1).

    Returns:
        The sum of e without the label, the label's logit minus the largest, and, by name, the sums that the needed
        statistics are computed from, or the statistic itself; (C,) each.
    """
    needs, top_k = token_loss.needs, min(token_loss.top_k, logits.shape[1])
    others = logits.new_empty(logits.shape[0])
    gap = torch.empty_like(others)
    sums = {name: torch.empty_like(others) for name in needs & {"entropy", "collision", "top_entropy"}}
    if "top_token" in needs:
        sums["top_token"] = torch.empty_like(others, dtype=torch.int64)
    step = logits.shape[0] if logits.device.type != "cpu" else max(1, _CACHED_LOGITS // logits.shape[1])
    for start in range(0, logits.shape[0], step):
        rows = slice(start, start + step)
        part, target = logits[rows], labels[rows]
        if "top_token" in needs:
            sums["top_token"][rows] = part.argmax(-1)
        part -= part.amax(-1, keepdim=True)
        gap[rows] = part.gather(-1, target).squeeze(-1)
        # A logit of -inf would give 0 times infinity, and e^-200 is negligible next to the largest term, 1.
        exponent = part.clamp(min=-200) if "entropy" in needs else None
        part.exp_()
        if exponent is not None:  # takes a third of the time of `entr`, which computes a logarithm again
            sums["entropy"][rows] = -exponent.mul_(part).sum(-1)
        if "collision" in needs:
            sums["collision"][rows] = part.square().sum(-1)
        if "top_entropy" in needs:
            sums["top_entropy"][rows] = _entropy(part.topk(top_k).values)
        part.scatter_(-1, target, 0.0)
        others[rows] = part.sum(-1)
    return others, gap, sums


def gradient_through_logits(logits: Tensor, rows: slice, inputs: LossInputs, wanted: bool) -> ChunkLoss:
    """For an objective of the whole distribution, by autograd on the logits (C, V) of a chunk."""
    labels, needs = inputs.labels[rows].unsqueeze(-1), inputs.token_loss.needs
    with torch.set_grad_enabled(wanted):
        logits = logits.requires_grad_(wanted)
        log_softmax = logits.log_softmax(-1)
        log_probs = log_softmax.gather(-1, labels).squeeze(-1)
        constant = log_softmax.detach()
        fields: dict[str, Any] = {"logits": logits, "labels": labels.squeeze(-1)}
        if "entropy" in needs:
            fields["entropy"] = -(constant.exp() * constant).sum(-1)
        if "collision" in needs:
            fields["collision"] = (2 * constant).exp().sum(-1)
        if "top_entropy" in needs:
            top_k = min(inputs.token_loss.top_k, constant.shape[1])
            fields["top_entropy"] = _entropy(constant.topk(top_k).values.exp())
        if "log_complement" in needs:
            fields["log_complement"] = constant.scatter(-1, labels, -torch.inf).logsumexp(-1)
        if "top_token" in needs:
            fields["top_token"] = constant.argmax(-1)
        if inputs.reference is not None:
            fields["reference_logits"] = inputs.reference.logits(rows).to(logits.dtype)
            fields["reference_log_probs"] = _label_log_probs(fields["reference_logits"], labels)
        losses = _losses(inputs, log_probs, fields)
        weighted = losses if inputs.token_weight is None else losses * inputs.token_weight[rows]
        d_logits = derivative(weighted, logits) if wanted else None
    logits = logits.detach()
    log_probs, target, peak = log_probs.detach(), logits.gather(-1, labels).squeeze(-1), logits.amax(-1)
    top_prob = (log_probs + (peak - target)).exp()
    needed, scale = _needed(fields), logits.new_ones(logits.shape[0])
    return ChunkLoss(log_probs, losses.detach(), target >= peak, top_prob, needed, d_logits, scale)


def _needed(fields: Mapping[str, Any]) -> list[Tensor]:
    return [fields[name] for name in RETURNED if name in fields]


def _label_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """(C,), log p of the labels (C, 1) under logits (C, V), without a second tensor of their size."""
    return logits.gather(-1, labels).squeeze(-1) - logits.logsumexp(-1)


def _entropy(mass: Tensor) -> Tensor:
    """(C, k), not normalized -> (C,), entropy in nats."""
    total = mass.sum(-1)
    entropy: Tensor = total.log() + torch.special.entr(mass).sum(-1) / total
    return entropy


def _losses(inputs: LossInputs, log_probs: Tensor, fields: Mapping[str, Any]) -> Tensor:
    """(C,), the objective's losses."""
    losses = inputs.token_loss.loss(TokenStats(log_probs, **fields, **inputs.context))
    if not isinstance(losses, Tensor) or losses.shape != log_probs.shape:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else losses
        raise UserError(
            f"{inputs.token_loss.name}.loss",
            f"expected the loss of each token, {tuple(log_probs.shape)}, got {got}; the head does the summing and "
            "dividing",
        )
    return losses
