"""Hidden states, output weight, labels and an objective in; a loss with its gradients and per-token statistics out.

The logits of all supervised tokens are the largest tensor of a fine-tuning step. For an objective f(p) the gradient of
a token's loss on its logits is s(p) (softmax - onehot), s(p) = -f'(p) p, known as soon as the logits are. So the
gradients on the hidden states and on the weight are computed inside the forward pass, chunk by chunk. That takes three
matrix products (logits, dHidden, dWeight), two if the weight is frozen, and never a tensor of size N x V. Backward only
multiplies by a scalar.

Shapes: N supervised tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_probsft.head.autograd import backward_retains_graph
from lit_probsft.head.checks import IGNORE_INDEX, check_label_ids, check_needs, check_reference, check_tokens
from lit_probsft.head.gradients import RETURNED, LossInputs, gradient_through_log_probs, gradient_through_logits
from lit_probsft.head.logits import Outputs, add_product, chunk_rows, multiply, result_dtype
from lit_probsft.head.token_loss import TokenLoss
from lit_probsft.objectives.base import REFERENCE, Objective

__all__ = ["IGNORE_INDEX", "HeadOutput", "objective_loss"]


@dataclass(frozen=True)
class HeadOutput:
    """The loss of N tokens and their statistics. Only `loss` has a gradient; the others are 0 (False) where the label
    is ignored."""

    loss: Tensor
    """Scalar, sum(token_weight * f) / normalizer."""
    log_probs: Tensor
    """(N,), log p of the labels, in nats."""
    token_losses: Tensor
    """(N,), f of each token, before weight and normalizer."""
    correct: Tensor
    """(N,), bool: no other token has a larger logit."""
    top_prob: Tensor
    """(N,), p of the most probable token."""
    entropy: Tensor | None = None
    """(N,), entropy of the model's distribution in nats, if the objective needs it."""
    log_complement: Tensor | None = None
    """(N,), log(1 - p) in nats, if the objective needs it."""
    top_token: Tensor | None = None
    """(N,), int64: id of the most probable token, if it is asked for."""


def objective_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    objective: Objective | TokenLoss,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    soft_cap: float | None = None,
    normalizer: float | Tensor | None = None,
    token_weight: Tensor | None = None,
    context: Mapping[str, Any] | None = None,
    reference: Outputs | None = None,
    chunk_size: int | None = None,
) -> HeadOutput:
    """The loss of N tokens under an objective, with gradients on `hidden`, `weight` and `bias`, without an (N, V)
    tensor.

    The logits are soft_cap * tanh(z / soft_cap) with z = logit_scale * (hidden @ weight.T + bias); without a soft cap
    just z. They and everything derived from them are fp32 (float64 for float64 input), never rounded to bf16: on CUDA
    bf16 operands are multiplied into fp32, on CPU they are widened first. Gradients are held in fp32 until backward,
    which applies the normalizer and the upstream factor and returns them in the dtype of their inputs. Under autocast
    on CUDA the operands are cast as a linear layer's would be. Under `torch.no_grad` no gradient is computed.

    Args:
        hidden: (N, H), the last hidden states.
        weight: (V, H), the output embedding.
        labels: (N,), token ids below V, or -100 to ignore the row.
        objective: f. If it needs `logits`, the gradient is computed by autograd on a chunk's logits, else in closed
            form.
        bias: (V,).
        normalizer: the sum is divided by it; None is the number of labels that are not -100 (at least 1).
        token_weight: (N,), a constant factor of each token in the sum; it does not enter the normalizer.
        context: fields of `TokenStats` that only the caller knows, such as `progress`.
        reference: a frozen model's outputs for the same N tokens, for an objective that reads `reference_log_probs` or
            `reference_logits`; they cost one more matrix product.
        chunk_size: rows of logits alive at once; None derives it from `LOGITS_BUDGET` of the device.

    Returns:
        The loss and the statistics per token. For N = 0 the loss is a zero that backpropagates zeros.

    Raises:
        ValueError: shapes do not match, a label is outside the vocabulary, or a field that the objective needs is
            missing.
    """
    for argument, value in (("chunk_size", chunk_size), ("soft_cap", soft_cap)):
        if value is not None and value <= 0:
            raise ValueError(f"objective_loss: expected {argument} above 0, got {value}")
    outputs = Outputs(hidden, weight, bias, logit_scale, soft_cap)
    token_loss, context = TokenLoss.of(objective), context or {}
    check_tokens(outputs, labels, token_weight)
    check_needs(token_loss, context)
    check_reference(token_loss, reference, outputs)
    if not token_loss.needs & REFERENCE:
        reference = None
    count = labels.shape[0]
    kept = (labels != IGNORE_INDEX).nonzero().squeeze(-1)
    all_kept = kept.numel() == count
    if not all_kept:
        outputs, labels = outputs.select(kept), labels[kept]
        reference = None if reference is None else reference.select(kept)
        token_weight = None if token_weight is None else token_weight[kept]
    check_label_ids(labels, outputs.vocabulary)
    if normalizer is None:
        normalizer = max(kept.numel(), 1)
    if token_weight is not None:
        token_weight = token_weight.to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    reference = None if reference is None else reference.ready()
    inputs = LossInputs(token_loss, context, labels, token_weight, reference)
    chunk = chunk_size or chunk_rows(outputs.vocabulary, hidden.device.type, _copies_of_logits(token_loss.needs))
    total, *stats = _HeadFunction.apply(  # type: ignore[no-untyped-call]
        outputs.hidden, weight, bias, outputs, inputs, normalizer, chunk, torch.is_grad_enabled()
    )
    if not all_kept:
        stats = [values.new_zeros(count).index_copy(0, kept, values) for values in stats]
    returned = [name for name in RETURNED if name in token_loss.needs]
    return HeadOutput(total, *stats[:4], **dict(zip(returned, stats[4:], strict=True)))


class _HeadFunction(torch.autograd.Function):
    """Computes the gradients in forward and multiplies them by a scalar in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        outputs: Outputs,  # of the same three tensors, which autograd has to see as arguments
        inputs: LossInputs,
        normalizer: float | Tensor,
        chunk: int,
        wanted: bool,
    ) -> Any:
        need_hidden, need_weight, need_bias = (wanted and need for need in ctx.needs_input_grad[:3])
        need_gradient = need_hidden or need_weight or need_bias
        needs = inputs.token_loss.needs
        compute = gradient_through_logits if "logits" in needs else gradient_through_log_probs
        outputs = outputs.ready()
        operand, fp = outputs.hidden.dtype, result_dtype(outputs.hidden.dtype)
        (n, size), vocabulary = hidden.shape, outputs.vocabulary

        def empty(*shape: int, dtype: torch.dtype = fp) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=hidden.device)

        losses = empty(n)
        stats = [empty(n), losses, empty(n, dtype=torch.bool), empty(n)]  # as the fields of HeadOutput
        dtypes = {"top_token": torch.int64}
        stats += [empty(n, dtype=dtypes.get(name, fp)) for name in RETURNED if name in needs]
        d_hidden = empty(n, size) if need_hidden else None
        d_weight = empty(vocabulary, size).zero_() if need_weight else None
        d_bias = empty(vocabulary).zero_() if need_bias else None
        buffer = empty(min(chunk, n), vocabulary)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, n, chunk):
                rows = slice(start, min(start + chunk, n))
                logits = buffer[: rows.stop - start]
                slope = outputs.write_logits(rows, logits, with_slope=need_gradient)
                result = compute(logits, rows, inputs, need_gradient)
                for stat, values in zip(stats, result.statistics, strict=True):
                    stat[rows] = values
                if (d_logits := result.d_logits) is None or result.scale is None:
                    continue
                scale = result.scale * outputs.logit_scale
                if slope is not None:
                    d_logits *= slope
                if d_bias is not None:
                    d_bias.addmv_(d_logits.t(), scale)
                if d_hidden is not None or d_weight is not None:
                    d_logits = d_logits.to(operand)
                if d_hidden is not None:
                    multiply(d_logits, outputs.weight, out=d_hidden[rows])
                    d_hidden[rows] *= scale.unsqueeze(-1)
                if d_weight is not None:
                    add_product(d_weight, d_logits.t(), (outputs.hidden[rows] * scale.unsqueeze(-1)).to(operand))
        ctx.mark_non_differentiable(*stats)
        ctx.gradients = d_hidden, d_weight, d_bias
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.normalizer = normalizer
        # Summed in double, so that a long batch loses no digits. MPS has no double.
        wide = torch.float32 if hidden.device.type == "mps" else torch.float64
        weighted = losses.to(wide) if inputs.token_weight is None else losses.to(wide) * inputs.token_weight
        total = (weighted.sum() / normalizer).to(fp)
        return total, *stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        factor = upstream[0] / ctx.normalizer
        # Scaling in place saves a copy of (V, H); with retain_graph another backward needs the gradients unscaled.
        retained = backward_retains_graph()
        if ctx.gradients is None:
            raise RuntimeError("objective_loss: backward a second time through a graph that was not retained")
        gradients, ctx.gradients = ctx.gradients, ctx.gradients if retained else None
        scaled = [
            None if g is None else (g * factor if retained else g.mul_(factor)).to(dtype)
            for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None, None, None


def _copies_of_logits(needs: frozenset[str]) -> int:
    """How many tensors of the size of a chunk's logits are alive at once."""
    # Autograd on the logits keeps the log-softmax, its gradient and the objective's own intermediate results.
    copies = 4 if "logits" in needs else 1
    if needs & REFERENCE:
        copies += 4 if "reference_logits" in needs else 1
    return copies
