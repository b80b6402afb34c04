"""Hidden states, output weight, labels and an objective in; a loss with its gradients and per-token statistics out.

The logits of N supervised tokens over a vocabulary of V are the largest tensor of a fine-tuning step. For an objective
f(p) the gradient of a token's loss on its logits is s(p) (softmax - onehot), s(p) = -f'(p) p, known as soon as the
logits are. So the gradients on the hidden states and on the weight are taken inside the forward pass, chunk by chunk:
three matrix products (logits, dHidden, dWeight), two where the weight is frozen, and nothing of size N x V is ever
alive. Backward only multiplies by a scalar.

Shapes: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_probsft.errors import UserError
from lit_probsft.head.logits import Outputs, chunk_rows, operand_dtype, result_dtype
from lit_probsft.head.logits import multiply as _multiply
from lit_probsft.head.token_loss import TokenLoss
from lit_probsft.objectives.base import HANDED_IN, NEEDS, REFERENCE, Objective, TokenStats, derivative

IGNORE_INDEX = -100

_RETURNED = ("entropy", "log_complement")
"""Statistics that the head returns for each token where they are needed."""


@dataclass(frozen=True)
class HeadOutput:
    """What the head says about N tokens. Only `loss` has a gradient; the others are 0 (False) where the label is
    ignored."""

    loss: Tensor
    """Scalar, sum(token_weight * f) / normalizer."""
    log_probs: Tensor
    """(N,), log p of the labels, nats."""
    token_losses: Tensor
    """(N,), f of each token, before weight and normalizer."""
    correct: Tensor
    """(N,), bool: no other token has a larger logit."""
    top_prob: Tensor
    """(N,), p of the most probable token."""
    entropy: Tensor | None = None
    """(N,), entropy of the model's distribution in nats, where the objective needs it."""
    log_complement: Tensor | None = None
    """(N,), log(1 - p) in nats, where the objective needs it."""


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
        objective: f. If it needs `logits`, the gradient is taken by autograd on a chunk's logits, else in closed form.
        bias: (V,).
        normalizer: what the sum is divided by; None is the number of labels that are not -100 (at least 1).
        token_weight: (N,), a constant factor of each token in the sum; it does not enter the normalizer.
        context: fields of `TokenStats` that only the caller knows, such as `progress`.
        reference: what a frozen model says about the same N tokens, for an objective that reads `reference_log_probs`
            or `reference_logits`; one more matrix product.
        chunk_size: rows of logits alive at once; None derives it from `LOGITS_BUDGET` of the device.

    Returns:
        The loss and the statistics per token. For N = 0 the loss is a zero that backpropagates zeros.

    Raises:
        ValueError: shapes do not fit, a label is outside the vocabulary, or the objective needs a field that is not
            there.
    """
    _check_shapes(hidden, weight, labels, bias, token_weight)
    for name, value in (("chunk_size", chunk_size), ("soft_cap", soft_cap)):
        if value is not None and value <= 0:
            raise ValueError(f"objective_loss: expected {name} above 0, got {value}")
    asked = TokenLoss.of(objective)
    context = _checked_context(asked, context)
    reference = _checked_reference(asked, reference, hidden, weight)
    count = labels.shape[0]
    kept = (labels != IGNORE_INDEX).nonzero().squeeze(-1)
    all_kept = kept.numel() == count
    if not all_kept:
        hidden, labels = hidden.index_select(0, kept), labels[kept]
        reference = None if reference is None else reference.of(kept)
        token_weight = None if token_weight is None else token_weight[kept]
    _check_labels(labels, weight.shape[0])
    if normalizer is None:
        normalizer = max(kept.numel(), 1)

    chunk = chunk_size or _chunk_rows(weight.shape[0], hidden.device.type, asked.needs)
    if token_weight is not None:
        token_weight = token_weight.to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    reference = None if reference is None else reference.ready()
    work = _Work(asked, labels, token_weight, context, logit_scale, soft_cap, chunk, reference)
    wanted = torch.is_grad_enabled()
    total, *of_tokens = _HeadFunction.apply(hidden, weight, bias, normalizer, work, wanted)  # type: ignore[no-untyped-call]
    if not all_kept:
        of_tokens = [values.new_zeros(count).index_copy(0, kept, values) for values in of_tokens]
    returned = [name for name in _RETURNED if name in asked.needs]
    return HeadOutput(total, *of_tokens[:4], **dict(zip(returned, of_tokens[4:], strict=True)))


@dataclass(frozen=True)
class _Work:
    """What the head has to do, beside the tensors that take a gradient."""

    asked: TokenLoss
    labels: Tensor
    token_weight: Tensor | None
    context: Mapping[str, Any]
    logit_scale: float
    soft_cap: float | None
    chunk: int
    reference: Outputs | None


class _HeadFunction(torch.autograd.Function):
    """Gradients in forward, a multiplication in backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, normalizer: Any, work: _Work, wanted: bool
    ) -> Any:
        need_hidden, need_weight, need_bias = (wanted and need for need in ctx.needs_input_grad[:3])
        device = hidden.device.type
        operand = operand_dtype(hidden, weight)
        fp = result_dtype(operand)
        h_all, w = hidden.detach().to(operand), weight.detach().to(operand)
        b = None if bias is None else bias.detach().to(fp)
        (n, size), vocabulary = hidden.shape, weight.shape[0]

        def empty(*shape: int, dtype: torch.dtype = fp) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=hidden.device)

        losses = empty(n)
        of_tokens = [empty(n), losses, empty(n, dtype=torch.bool), empty(n)]
        of_tokens += [empty(n) for name in _RETURNED if name in work.asked.needs]
        d_hidden = empty(n, size) if need_hidden else None
        d_weight = empty(vocabulary, size).zero_() if need_weight else None
        d_bias = empty(vocabulary).zero_() if need_bias else None
        buffer = empty(min(work.chunk, n), vocabulary)
        with torch.autocast(device, enabled=False):
            for start in range(0, n, work.chunk):
                rows = slice(start, min(start + work.chunk, n))
                h = h_all[rows]
                logits = buffer[: h.shape[0]]
                _multiply(h, w.t(), out=logits)
                if b is not None:
                    logits += b
                if work.logit_scale != 1.0:
                    logits *= work.logit_scale
                slope = None  # of the soft cap, where there is one
                if work.soft_cap is not None:
                    logits.div_(work.soft_cap).tanh_()
                    slope = 1 - logits.square() if need_hidden or need_weight or need_bias else None
                    logits *= work.soft_cap
                through_logits = "logits" in work.asked.needs
                gradient = _gradient_through_logits if through_logits else _gradient_through_log_probs
                d_logits, scale, *stats = gradient(logits, rows, work, need_hidden or need_weight or need_bias)
                for target, value in zip(of_tokens, stats, strict=True):
                    target[rows] = value
                # d_logits is to be multiplied by `scale` per row; it is cheaper done on (N, H) than on (N, V).
                scale = scale * work.logit_scale
                if slope is not None:
                    d_logits *= slope
                if d_bias is not None:
                    d_bias.addmv_(d_logits.t(), scale)
                if d_hidden is not None or d_weight is not None:
                    d_logits = d_logits.to(operand)
                if d_hidden is not None:
                    _multiply(d_logits, w, out=d_hidden[rows])
                    d_hidden[rows] *= scale.unsqueeze(-1)
                if d_weight is not None:
                    _add_product(d_weight, d_logits.t(), (h * scale.unsqueeze(-1)).to(operand))
        ctx.mark_non_differentiable(*of_tokens)
        ctx.gradients = d_hidden, d_weight, d_bias
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.normalizer = normalizer
        # Summed in double: a long batch must not lose digits. MPS has none.
        wide = torch.float32 if device == "mps" else torch.float64
        weighted = losses.to(wide) if work.token_weight is None else losses.to(wide) * work.token_weight
        total = (weighted.sum() / normalizer).to(fp)
        return total, *of_tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        factor = upstream[0] / ctx.normalizer
        # Scaling in place spares a copy of (V, H); with retain_graph the gradients must survive for another backward.
        retained = torch._C._autograd._get_current_graph_task_keep_graph()
        if ctx.gradients is None:
            raise RuntimeError("objective_loss: backward a second time through a graph that was not retained")
        gradients, ctx.gradients = ctx.gradients, ctx.gradients if retained else None
        scaled = [
            None if g is None else (g * factor if retained else g.mul_(factor)).to(dtype)
            for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


def _gradient_through_log_probs(logits: Tensor, rows: slice, work: _Work, wanted: bool) -> tuple[Tensor, ...]:
    """For an f that differentiates log p alone: (d_logits but for a factor per row, that factor, log p, f, correct, top
    p), and the entropy where it is needed.

    `logits` (C, V) are overwritten. With e = exp(logits - max), S their sum and R that sum without the target's,
    softmax - onehot is (e, and -R at the target) / S: the target's entry and log p keep their digits where p is near 1.
    """
    labels = work.labels[rows].unsqueeze(-1)
    others = logits.new_empty(logits.shape[0])
    gap = torch.empty_like(others)
    needs = work.asked.needs
    sums = {name: torch.empty_like(others) for name in needs & {"entropy", "collision", "top_entropy"}}
    top_k = min(work.asked.top_k, logits.shape[1])
    # On a CPU a few rows at a time stay in its cache through all the passes.
    step = logits.shape[0] if logits.device.type != "cpu" else max(1, 2**18 // logits.shape[1])
    for start in range(0, logits.shape[0], step):
        part, target = logits[start : start + step], labels[start : start + step]
        peak = part.amax(-1, keepdim=True)
        part -= peak
        gap[start : start + step] = part.gather(-1, target).squeeze(-1)
        # e^-200 is nothing beside the largest, 1; a logit of -inf would give 0 times infinity.
        exponent = part.clamp(min=-200) if "entropy" in needs else None
        part.exp_()
        if exponent is not None:  # a third of the time of `entr`, which takes a logarithm of what was an exponent
            sums["entropy"][start : start + step] = -exponent.mul_(part).sum(-1)
        if "collision" in needs:
            sums["collision"][start : start + step] = part.square().sum(-1)
        if "top_entropy" in needs:
            sums["top_entropy"][start : start + step] = _entropy(part.topk(top_k).values)
        part.scatter_(-1, target, 0.0)
        others[start : start + step] = part.sum(-1)
    total = others + gap.exp()
    log_probs = torch.where(gap == 0, -torch.log1p(others), gap - total.log())
    fields: dict[str, Any] = {}
    if "entropy" in needs:
        fields["entropy"] = total.log() + sums["entropy"] / total
    if "collision" in needs:
        fields["collision"] = sums["collision"] / total.square()
    if "top_entropy" in needs:
        fields["top_entropy"] = sums["top_entropy"]
    if "log_complement" in needs:
        fields["log_complement"] = others.log() - total.log()
    if work.reference is not None:
        fields["reference_log_probs"] = _reference_log_probs(work.reference.logits(rows), labels).to(log_probs.dtype)
    if not wanted:  # inside inference mode nothing could be differentiated
        losses = _losses(work, log_probs=log_probs, **fields)
        return logits, log_probs, log_probs, losses, gap == 0, total.reciprocal(), *_returned(fields)
    with torch.enable_grad():
        log_probs = log_probs.requires_grad_()
        losses = _losses(work, log_probs=log_probs, **fields)
        steepness = -derivative(losses, log_probs)
    if work.token_weight is not None:
        steepness = steepness * work.token_weight[rows]
    logits.scatter_(-1, labels, -others.unsqueeze(-1))
    of_tokens = log_probs.detach(), losses.detach(), gap == 0
    # The largest term of the sum is 1.
    return logits, steepness / total, *of_tokens, total.reciprocal(), *_returned(fields)


def _gradient_through_logits(logits: Tensor, rows: slice, work: _Work, wanted: bool) -> tuple[Tensor, ...]:
    """The same for a loss of the whole distribution, by autograd on a chunk's logits."""
    labels = work.labels[rows].unsqueeze(-1)
    with torch.set_grad_enabled(wanted):
        logits = logits.requires_grad_(wanted)
        log_softmax = logits.log_softmax(-1)
        log_probs = log_softmax.gather(-1, labels).squeeze(-1)
        fields: dict[str, Any] = {}
        needs, constant = work.asked.needs, log_softmax.detach()
        if "entropy" in needs:
            fields["entropy"] = -(constant.exp() * constant).sum(-1)
        if "collision" in needs:
            fields["collision"] = (2 * constant).exp().sum(-1)
        if "top_entropy" in needs:
            fields["top_entropy"] = _entropy(constant.topk(min(work.asked.top_k, constant.shape[1])).values.exp())
        if "log_complement" in needs:
            fields["log_complement"] = constant.scatter(-1, labels, -torch.inf).logsumexp(-1)
        if work.reference is not None:
            fields["reference_logits"] = work.reference.logits(rows).to(logits.dtype)
            fields["reference_log_probs"] = _reference_log_probs(fields["reference_logits"], labels)
        losses = _losses(work, log_probs=log_probs, logits=logits, labels=labels.squeeze(-1), **fields)
        weighted = losses if work.token_weight is None else losses * work.token_weight[rows]
        d_logits = derivative(weighted, logits) if wanted else logits
    logits = logits.detach()
    log_probs, target, peak = log_probs.detach(), logits.gather(-1, labels).squeeze(-1), logits.amax(-1)
    of_tokens = log_probs, losses.detach(), target >= peak
    top_prob = (log_probs + (peak - target)).exp()
    return d_logits, logits.new_ones(logits.shape[0]), *of_tokens, top_prob, *_returned(fields)


def _returned(fields: Mapping[str, Any]) -> list[Tensor]:
    return [fields[name] for name in _RETURNED if name in fields]


def _reference_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """(C,), log p of the labels (C, 1) under logits (C, V), without a second tensor of their size."""
    return logits.gather(-1, labels).squeeze(-1) - logits.logsumexp(-1)


def _entropy(mass: Tensor) -> Tensor:
    """(N, k), not normalized -> (N,), entropy in nats."""
    total = mass.sum(-1)
    entropy: Tensor = total.log() + torch.special.entr(mass).sum(-1) / total
    return entropy


def _losses(work: _Work, **fields: Any) -> Tensor:
    losses = work.asked.loss(TokenStats(**fields, **work.context))
    if not isinstance(losses, Tensor) or losses.shape != fields["log_probs"].shape:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else losses
        raise UserError(
            f"{work.asked.name}.loss",
            f"expected a loss of each token, {tuple(fields['log_probs'].shape)}, got {got}; summing and "
            "dividing is the head's business",
        )
    return losses


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right, out_dtype=total.dtype)


def _chunk_rows(vocabulary: int, device: str, needs: frozenset[str]) -> int:
    # Autograd on the logits keeps the log-softmax, its gradient and what the objective makes of them.
    copies = 4 if "logits" in needs else 1
    if needs & REFERENCE:  # the reference's, and what is made of both
        copies += 4 if "reference_logits" in needs else 1
    return chunk_rows(vocabulary, device, copies)


def _check_shapes(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, token_weight: Tensor | None
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "objective_loss: expected hidden (N, H) and weight (V, H), "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    expected = {"labels": (labels, hidden.shape[0]), "token_weight": (token_weight, hidden.shape[0])}
    expected["bias"] = (bias, weight.shape[0])
    if token_weight is not None and token_weight.requires_grad:
        raise ValueError("objective_loss: token_weight is a constant, but one that requires a gradient came")
    for name, (tensor, length) in expected.items():
        if tensor is not None and tuple(tensor.shape) != (length,):
            raise ValueError(f"objective_loss: expected {name} ({length},), got {tuple(tensor.shape)}")


def _check_labels(labels: Tensor, vocabulary: int) -> None:
    # On CUDA the two numbers would cost a synchronization; the data module has compared the largest id with the
    # model's.
    if labels.device.type == "cpu" and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < vocabulary:
        raise UserError(
            "labels",
            f"expected ids from 0 to {vocabulary - 1} (or {IGNORE_INDEX}), "
            f"got {int(labels.min())} to {int(labels.max())}: does the tokenizer belong to this model?",
        )


def _checked_context(asked: TokenLoss, context: Mapping[str, Any] | None) -> Mapping[str, Any]:
    context = context or {}
    if unknown := sorted(asked.needs - NEEDS):
        raise ValueError(f"{asked.name}.needs: expected names of {sorted(NEEDS)}, got {unknown}")
    if unknown := sorted(context.keys() - HANDED_IN):
        raise ValueError(f"objective_loss: expected context of {sorted(HANDED_IN)}, got {unknown}")
    if missing := sorted((asked.needs & HANDED_IN) - context.keys()):
        raise ValueError(f"{asked.name} needs {', '.join(missing)}, which objective_loss takes in `context`")
    return context


def _checked_reference(asked: TokenLoss, reference: Outputs | None, hidden: Tensor, weight: Tensor) -> Outputs | None:
    """The reference where the objective reads it, else none: nothing is computed that nobody asked for."""
    needs, name = asked.needs & REFERENCE, asked.name
    if not needs:
        return None
    if reference is None:
        raise ValueError(f"{name} needs {', '.join(sorted(needs))}, for which objective_loss takes a `reference`")
    if "reference_logits" in needs and "logits" not in asked.needs:
        raise ValueError(f"{name}.needs: expected `logits` beside `reference_logits`, got {sorted(asked.needs)}")
    if (len(reference.hidden), reference.vocabulary) != (hidden.shape[0], weight.shape[0]):
        raise ValueError(
            f"objective_loss: expected a reference of {hidden.shape[0]} tokens over a vocabulary of {weight.shape[0]}, "
            f"got {len(reference.hidden)} over {reference.vocabulary}"
        )
    return reference
