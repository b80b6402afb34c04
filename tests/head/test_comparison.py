"""Compares `compare_outputs` with thirty obvious lines in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_probsft.head.comparison import Comparison, compare_outputs
from lit_probsft.head.logits import Outputs

N, V = 23, 31
FIELDS = ("forward_kl", "reverse_kl", "js", "log_probs_a", "log_probs_b")


def models(dtype: torch.dtype = torch.float64) -> tuple[Outputs, Outputs, Tensor]:
    """Two models of different hidden size, with every change of the logits between them; some labels are ignored."""
    a = Outputs(torch.randn(N, 7).to(dtype), torch.randn(V, 7).to(dtype), torch.randn(V).to(dtype), 0.6, 4.0)
    b = Outputs(torch.randn(N, 11).to(dtype), torch.randn(V, 11).to(dtype), None, 1.4)
    labels = torch.randint(V, (N,))
    labels[torch.randperm(N)[:5]] = -100
    return a, b, labels


def log_distribution(x: Outputs) -> Tensor:
    logits = x.hidden.double() @ x.weight.double().T
    if x.bias is not None:
        logits = logits + x.bias.double()
    logits = logits * x.logit_scale
    if x.soft_cap is not None:
        logits = x.soft_cap * torch.tanh(logits / x.soft_cap)
    return logits.log_softmax(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def obvious(a: Outputs, b: Outputs, labels: Tensor) -> Comparison:
    log_a, log_b = log_distribution(a), log_distribution(b)
    middle = ((log_a.exp() + log_b.exp()) / 2).log()
    target = labels.clamp(min=0)[:, None]
    values = [kl(log_a, log_b), kl(log_b, log_a), (kl(log_a, middle) + kl(log_b, middle)) / 2]
    values += [log_a.gather(-1, target)[:, 0], log_b.gather(-1, target)[:, 0]]
    return Comparison(*(torch.where(labels == -100, 0.0, value) for value in values))


@pytest.mark.parametrize("chunk_size", [1, 4, N, 1000, None])
def test_comparison_equals_the_plain_computation_at_any_chunk_size(chunk_size: int | None) -> None:
    a, b, labels = models()
    got, expected = compare_outputs(a, b, labels, chunk_size=chunk_size), obvious(a, b, labels)
    for field in FIELDS:
        torch.testing.assert_close(getattr(got, field), getattr(expected, field), rtol=1e-12, atol=1e-12)
    assert got.forward_kl[labels != -100].min() > 0
    assert 0 < got.js.max() < math.log(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_inputs_are_multiplied_without_rounding_the_logits(dtype: torch.dtype) -> None:
    a, b, labels = models(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = compare_outputs(a, b, labels)
    expected = obvious(a, b, labels)
    for field in FIELDS:  # bf16 logits would be off by a hundredth
        torch.testing.assert_close(getattr(got, field), getattr(expected, field), rtol=1e-4, atol=1e-5)


def test_a_model_has_no_divergence_from_itself() -> None:
    a, _, labels = models(torch.float32)
    got = compare_outputs(a, a, labels)
    assert not got.forward_kl.any()
    assert not got.reverse_kl.any()
    assert got.js.abs().max() < 1e-15
    assert torch.equal(got.log_probs_a, got.log_probs_b)


def test_small_divergences_keep_their_digits() -> None:
    a, _, labels = models()
    b = Outputs(a.hidden + 1e-5 * torch.randn_like(a.hidden), a.weight, a.bias, a.logit_scale, a.soft_cap)
    got = compare_outputs(a, b, labels)
    kept = labels != -100
    # To second order in the difference, both directions and four times the Jensen-Shannon divergence are equal.
    torch.testing.assert_close(got.forward_kl[kept], got.reverse_kl[kept], rtol=1e-3, atol=1e-15)
    torch.testing.assert_close(got.forward_kl[kept], 4 * got.js[kept], rtol=1e-3, atol=1e-15)
    assert 0 < got.forward_kl[kept].max() < 1e-8


def test_no_tensor_has_the_size_of_all_logits() -> None:
    n, vocabulary, chunk = 64, 500, 8
    a, b = (Outputs(torch.randn(n, 4), torch.randn(vocabulary, 4)) for _ in range(2))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            leaves = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]
            largest = max([largest, *(t.numel() for t in leaves)])
            return result

    with Watch():
        compare_outputs(a, b, torch.randint(vocabulary, (n,)), chunk_size=chunk)
    assert largest <= chunk * vocabulary


def test_zero_tokens_give_empty_results() -> None:
    a, b, labels = models()
    for ignored in (torch.full_like(labels, -100), labels[:0]):
        some = (Outputs(x.hidden[: len(ignored)], x.weight, x.bias) for x in (a, b))
        got = compare_outputs(*some, ignored)
        for field in FIELDS:
            assert getattr(got, field).shape == ignored.shape
            assert not getattr(got, field).any()


def test_outputs_that_do_not_match_are_rejected() -> None:
    a, b, labels = models()
    with pytest.raises(ValueError, match="the same vocabulary, got 31 and 30 tokens"):
        compare_outputs(a, Outputs(b.hidden, b.weight[1:]), labels)
    with pytest.raises(ValueError, match="as many hidden states of both models as labels, got 23, 23 and 22"):
        compare_outputs(a, b, labels[1:])
    with pytest.raises(ValueError, match="chunk_size above 0, got 0"):
        compare_outputs(a, b, labels, chunk_size=0)
    with pytest.raises(ValueError, match=r"bias \(31,\), got \(30,\)"):
        Outputs(b.hidden, b.weight, b.weight[1:, 0])
    with pytest.raises(ValueError, match=r"hidden \(N, H\) and weight \(V, H\)"):
        Outputs(b.hidden, a.weight)
