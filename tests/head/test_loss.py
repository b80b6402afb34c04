"""Compares the head with thirty obvious lines in float64."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.head.layer import HeadRequest, ObjectiveHead
from lit_probsft.head.logits import Outputs, chunk_rows
from lit_probsft.head.loss import _copies_of_logits, objective_loss
from lit_probsft.head.token_loss import TokenLoss
from lit_probsft.objectives import (
    EAFT,
    GEM,
    NLL,
    PSFT,
    Anchored,
    LabelSmoothing,
    NegP,
    Objective,
    Power,
    Threshold,
    TokenStats,
)
from tests.members import ALL, CONTEXT, OF_P_ALONE, Scheduled, reference

N, H, V = 37, 12, 29
every_member = pytest.mark.parametrize("objective", ALL, ids=repr)


def entropy_of_the_largest(probs: Tensor, k: int) -> Tensor:
    """(N,), entropy of each row's k largest probabilities, divided by their sum."""
    largest = probs.sort(-1, descending=True).values[:, :k]
    shares = largest / largest.sum(-1, keepdim=True)
    return -(shares * shares.log()).sum(-1)


def obvious(
    hidden,
    weight,
    labels,
    objective,
    *,
    bias=None,
    logit_scale=1.0,
    soft_cap=None,
    normalizer=None,
    token_weight=None,
):
    """The loss in float64: all logits at once, statistics by their definitions, gradients by autograd."""
    kept = labels != -100
    logits = hidden.double()[kept] @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * logit_scale
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    log_p_all = logits.log_softmax(-1)
    target = labels[kept][:, None]
    log_probs = log_p_all.gather(-1, target)[:, 0]
    constant = log_p_all.detach()
    other = reference(len(labels), len(weight))
    reference_logits = 5 * torch.tanh(0.8 * other.hidden[kept] @ other.weight.T / 5)
    tokens = TokenStats(
        log_probs=log_probs,
        entropy=-(constant.exp() * constant).sum(-1),
        collision=constant.exp().square().sum(-1),
        log_complement=torch.log1p(-log_probs.detach().exp()),
        logits=logits,
        labels=target[:, 0],
        top_entropy=entropy_of_the_largest(constant.exp(), objective.top_k),
        reference_logits=reference_logits,
        reference_log_probs=reference_logits.log_softmax(-1).gather(-1, target)[:, 0],
        **CONTEXT,
    )
    losses = objective.loss(tokens)
    factors = torch.ones_like(losses) if token_weight is None else token_weight.double()[kept]
    total = (factors * losses).sum() / (kept.sum() if normalizer is None else normalizer)
    everywhere = torch.zeros(len(labels), dtype=torch.float64)
    return total, everywhere.index_put((kept,), log_probs.detach()), everywhere.index_put((kept,), losses.detach())


def inputs(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden = (torch.randn(N, H) * scale).to(dtype).requires_grad_()
    weight = torch.randn(V, H).to(dtype).requires_grad_()
    bias = torch.randn(V).to(dtype).requires_grad_()
    labels = torch.randint(V, (N,))
    labels[torch.randperm(N)[:7]] = -100
    return hidden, weight, labels, bias, torch.rand(N) + 0.1


def gradients(loss: Tensor, *leaves: Tensor, upstream: float = 1.0) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss * upstream, leaves)


def close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    size = expected.double().abs().max().item() or 1.0
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance * size)


VARIANTS = {
    "plain": {},
    "weights and normalizer": {"normalizer": 11.5, "weighted": True},
    "bias": {"with_bias": True},
    "scale": {"logit_scale": 0.37},
    "soft cap": {"soft_cap": 2.5},
    "all": {"normalizer": 3.0, "weighted": True, "with_bias": True, "logit_scale": 1.7, "soft_cap": 4.0},
}


@every_member
@pytest.mark.parametrize("variant", VARIANTS)
def test_head_equals_the_plain_computation(objective: Objective, variant: str) -> None:
    options = dict(VARIANTS[variant])
    hidden, weight, labels, bias, token_weight = inputs()
    leaves = [hidden, weight]
    if options.pop("with_bias", False):
        options["bias"] = bias
        leaves.append(bias)
    if options.pop("weighted", False):
        options["token_weight"] = token_weight
    total, log_probs, losses = obvious(hidden, weight, labels, objective, **options)
    out = objective_loss(
        hidden, weight, labels, objective, chunk_size=5, context=CONTEXT, reference=reference(N, V), **options
    )
    close(out.loss, total, torch.float64)
    close(out.log_probs, log_probs, torch.float64)
    close(out.token_losses, losses, torch.float64)
    for got, expected in zip(
        gradients(out.loss, *leaves, upstream=-2.5), gradients(total, *leaves, upstream=-2.5), strict=True
    ):
        close(got, expected, torch.float64)


@every_member
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_inputs_are_multiplied_without_rounding_the_logits(objective: Objective, dtype: torch.dtype) -> None:
    hidden, weight, labels, _, _ = inputs(dtype)
    total, log_probs, _ = obvious(hidden, weight, labels, objective)
    out = objective_loss(hidden, weight, labels, objective, chunk_size=8, context=CONTEXT, reference=reference(N, V))
    assert out.loss.dtype == out.log_probs.dtype == torch.float32
    close(out.loss, total, torch.float32)
    # bf16 logits would be wrong by about a hundredth
    torch.testing.assert_close(out.log_probs.double(), log_probs, rtol=1e-5, atol=1e-5)
    for got, expected in zip(gradients(out.loss, hidden, weight), gradients(total, hidden, weight), strict=True):
        assert got.dtype == dtype
        close(got, expected, dtype)


@pytest.mark.parametrize("objective", [NLL(), NegP(), LabelSmoothing(0.1)], ids=repr)
def test_tied_weights_add_their_two_gradients(objective: Objective) -> None:
    embedding = torch.randn(V, H, dtype=torch.float64, requires_grad=True)
    ids, labels = torch.randint(V, (N,)), torch.randint(V, (N,))
    (expected,) = gradients(obvious(embedding[ids].tanh(), embedding, labels, objective)[0], embedding)
    (got,) = gradients(
        objective_loss(embedding[ids].tanh(), embedding, labels, objective, chunk_size=7).loss, embedding
    )
    close(got, expected, torch.float64)


@every_member
def test_chunk_size_changes_nothing(objective: Objective) -> None:
    hidden, weight, labels, _, _ = inputs()
    results = []
    for chunk_size in (1, 6, N, 1000, None):
        out = objective_loss(
            hidden, weight, labels, objective, chunk_size=chunk_size, context=CONTEXT, reference=reference(N, V)
        )
        results.append([out.loss, *gradients(out.loss, hidden, weight)])
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            close(another, one, torch.float64)


def test_probabilities_near_one_keep_their_digits() -> None:
    """log p and the gradient come from the mass of the other tokens. In fp32, logits - logsumexp would be 0 for 1 - p
    below 1e-7."""
    gaps = torch.tensor([5.0, 10.0, 16.0, 20.0, 30.0])
    hidden = torch.eye(5, requires_grad=True)
    weight = torch.zeros(3, 5)
    weight[0] = gaps
    weight[0, 0] += 1e-3
    weight.requires_grad_()
    labels = torch.zeros(5, dtype=torch.long)
    others = 2 * torch.exp(-weight.detach()[0].double())  # their mass divided by the target's
    out = objective_loss(hidden, weight, labels, NLL(), normalizer=1)
    torch.testing.assert_close(out.log_probs.double(), -torch.log1p(others), rtol=1e-5, atol=0)
    # d(-log p)/dz_y = p - 1. The hidden states are unit vectors: the logits of token i are weight[:, i].
    (got,) = gradients(out.loss, weight)
    torch.testing.assert_close(got[0].double(), -others / (1 + others), rtol=1e-5, atol=0)


def test_very_small_probabilities_give_finite_losses() -> None:
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [9000.0]])
    for objective in OF_P_ALONE:
        out = objective_loss(hidden, weight, torch.tensor([0]), objective)
        assert out.log_probs.item() == -9000
        assert out.loss.isfinite()
        assert gradients(out.loss, hidden)[0].isfinite()


@every_member
def test_zero_tokens_give_a_zero_that_backpropagates(objective: Objective) -> None:
    for labels in (torch.full((4,), -100), torch.empty(0, dtype=torch.long)):
        hidden = torch.randn(len(labels), H, requires_grad=True)
        weight = torch.randn(V, H, requires_grad=True)
        other = reference(len(labels), V)
        out = objective_loss(hidden, weight, labels, objective, context=CONTEXT, reference=other)
        assert out.loss.item() == 0
        for gradient, leaf in zip(gradients(out.loss, hidden, weight), (hidden, weight), strict=True):
            assert gradient.shape == leaf.shape
            assert not gradient.any()


def test_correct_means_that_no_logit_is_larger() -> None:
    hidden, weight, labels, _, _ = inputs()
    expected = (hidden @ weight.T).argmax(-1) == labels
    for objective in (NLL(), LabelSmoothing(0.1)):
        labels_at_best = torch.where(torch.arange(N) % 3 == 0, (hidden @ weight.T).argmax(-1), labels)
        out = objective_loss(hidden, weight, labels_at_best, objective)
        assert torch.equal(out.correct, (hidden @ weight.T).argmax(-1) == labels_at_best)
    assert not objective_loss(hidden, weight, labels, NLL()).correct[labels == -100].any()
    assert torch.equal(objective_loss(hidden, weight, labels, NLL()).correct, expected)


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls += [name] if name in ("mm", "addmm_") else []
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("frozen", "products"), [("hidden", ["mm", "addmm_"]), ("weight", ["mm", "mm"])])
def test_a_frozen_input_costs_no_product(frozen: str, products: list[str]) -> None:
    hidden, weight, labels, _, _ = inputs()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    with Products() as counted:
        objective_loss(hidden, weight, labels, NegP(), chunk_size=N).loss.backward()
    assert counted.calls == products
    with Products() as counted, torch.no_grad():
        assert not objective_loss(hidden, weight, labels, NegP(), chunk_size=N).loss.requires_grad
    assert counted.calls == ["mm"]


@pytest.mark.parametrize(("objective", "more"), [(NegP(), 0), (PSFT(), 1), (Anchored(), 1)], ids=repr)
def test_a_reference_costs_one_product_if_the_objective_reads_it(objective: Objective, more: int) -> None:
    hidden, weight, labels, _, _ = inputs()
    with Products() as counted:
        objective_loss(hidden, weight, labels, objective, reference=reference(N, V), chunk_size=N).loss.backward()
    assert sorted(counted.calls) == ["addmm_", *["mm"] * (2 + more)]


def test_no_tensor_has_the_size_of_all_logits() -> None:
    """The largest tensor is a chunk of logits or the gradient of the weight, never N x V."""
    n, vocabulary, chunk = 64, 500, 8
    hidden, weight = torch.randn(n, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    for objective in (NegP(), LabelSmoothing(0.1), EAFT(), GEM(), Anchored(), PSFT()):
        largest = 0

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal largest
                result = func(*args, **(kwargs or {}))
                largest = max(
                    [largest, *(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor))]
                )
                return result

        with Watch():
            labels, other = torch.randint(vocabulary, (n,)), Outputs(hidden.detach(), weight.detach() + 1)
            objective_loss(hidden, weight, labels, objective, reference=other, chunk_size=chunk).loss.backward()
        assert largest <= chunk * vocabulary
    gc.collect()


def test_backward_runs_twice_only_through_a_retained_graph() -> None:
    hidden, weight, labels, _, _ = inputs()
    out = objective_loss(hidden, weight, labels, NegP())
    first = torch.autograd.grad(out.loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(out.loss * 3, (hidden, weight))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(3 * a, b)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(out.loss, (hidden, weight))


def test_a_second_derivative_is_rejected() -> None:
    hidden, weight, labels, _, _ = inputs()
    (gradient,) = torch.autograd.grad(objective_loss(hidden, weight, labels, NLL()).loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        torch.autograd.grad(gradient.sum(), hidden)


def test_token_weights_of_another_dtype_are_cast() -> None:
    hidden, weight, labels, bias, token_weight = inputs(torch.float32)
    one = objective_loss(hidden, weight, labels, NLL(), bias=bias, token_weight=token_weight.double()).loss
    other = objective_loss(hidden, weight, labels, NLL(), bias=bias, token_weight=token_weight).loss
    torch.testing.assert_close(torch.autograd.grad(one, bias), torch.autograd.grad(other, bias))


def test_normalizer_may_be_a_tensor() -> None:
    hidden, weight, labels, _, _ = inputs()
    one = objective_loss(hidden, weight, labels, NLL(), normalizer=7.0).loss
    other = objective_loss(hidden, weight, labels, NLL(), normalizer=torch.tensor(7.0)).loss
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("objective", [NLL(), Power(0.5), LabelSmoothing(0.2)], ids=repr)
def test_gradcheck_of_the_function_itself(objective: Objective) -> None:
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    labels, token_weight = torch.tensor([0, -100, 4, 2]), torch.rand(4, dtype=torch.float64)

    def loss(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        options = {"token_weight": token_weight, "soft_cap": 5.0, "chunk_size": 2}
        return objective_loss(h, w, labels, objective, bias=b, **options).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight.requires_grad_(), bias.requires_grad_()))


def test_chunks_of_logits_stay_within_the_budget() -> None:
    """Autograd on the logits keeps more copies of a chunk's logits than the closed form."""
    assert _copies_of_logits(NLL().needs) < _copies_of_logits(LabelSmoothing().needs)
    for vocabulary in (1000, 32000, 151936):
        assert chunk_rows(vocabulary, "cpu") * vocabulary * 4 <= max(32 * 2**20, 16 * vocabulary * 4)
        assert chunk_rows(vocabulary, "cuda", copies=4) < chunk_rows(vocabulary, "cuda") <= 2**28 / vocabulary


def test_autocast_does_not_reach_the_head() -> None:
    hidden, weight, labels, _, _ = inputs(torch.float32)
    expected = objective_loss(hidden, weight, labels, NLL()).loss
    with torch.autocast("cpu", torch.bfloat16):
        out = objective_loss(hidden, weight, labels, NLL())
        got, grad = out.loss, torch.autograd.grad(out.loss, weight)[0]
    torch.testing.assert_close(grad, torch.autograd.grad(expected, weight)[0], rtol=1e-6, atol=1e-7)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


@every_member
def test_every_member_is_evaluated_in_inference_mode(objective: Objective) -> None:
    hidden, weight, labels, _, _ = inputs()
    expected = objective_loss(hidden, weight, labels, objective, context=CONTEXT, reference=reference(N, V))
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            out = objective_loss(hidden, weight, labels, objective, context=CONTEXT, reference=reference(N, V))
        torch.testing.assert_close(out.loss, expected.loss)
        torch.testing.assert_close(out.log_probs, expected.log_probs)


class Total(NLL):
    """A wrong objective: it returns the sum."""

    def loss(self, tokens: TokenStats) -> Tensor:
        return super().loss(tokens).sum()


def test_wrong_arguments_are_rejected_by_name() -> None:
    hidden, weight, labels, _, _ = inputs()
    with pytest.raises(UserError, match=r"Total.loss: expected the loss of each token, \(30,\), got \(\)"):
        objective_loss(hidden, weight, labels, Total())
    for option in ({"chunk_size": 0}, {"chunk_size": -1}, {"soft_cap": 0.0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            objective_loss(hidden, weight, labels, NLL(), **option)
    with pytest.raises(ValueError, match="context of"):
        objective_loss(hidden, weight, labels, NLL(), context={"progres": 1})
    with pytest.raises(ValueError, match="a constant token_weight"):
        objective_loss(hidden, weight, labels, NLL(), token_weight=torch.ones(N, requires_grad=True))
    with pytest.raises(ValueError, match=r"hidden \(N, H\)"):
        objective_loss(hidden[:, :-1], weight, labels, NLL())
    with pytest.raises(ValueError, match="labels"):
        objective_loss(hidden, weight, labels[1:], NLL())
    with pytest.raises(ValueError, match="token_weight"):
        objective_loss(hidden, weight, labels, NLL(), token_weight=torch.ones(3))
    with pytest.raises(UserError, match=f"labels: expected ids from 0 to {V - 1}"):
        objective_loss(hidden, weight, labels.clamp(min=0) + V, NLL())
    with pytest.raises(ValueError, match="needs progress"):
        objective_loss(hidden, weight, labels, Scheduled())


def test_objective_head_is_the_linear_layer_outside_a_request() -> None:
    layer = torch.nn.Linear(H, V)
    head = ObjectiveHead.replacing(layer)
    assert head.weight is layer.weight
    assert head.bias is layer.bias
    hidden = torch.randn(2, 5, H)
    torch.testing.assert_close(head(hidden), layer(hidden))
    labels = torch.randint(V, (2, 5))
    labels[0, :3] = -100
    request = HeadRequest(labels, NLL())
    with head.answering(request):
        loss = head(hidden)
    logits = layer(hidden)[:, :-1].reshape(-1, V)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1))
    torch.testing.assert_close(loss.reshape(()), expected)
    factors = torch.rand(2, 5)  # each at the position of the label that it weighs
    with head.answering(HeadRequest(labels, NLL(), token_weight=factors)):
        weighted = head(hidden)
    per_token = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="none")
    wanted = (per_token * factors[:, 1:].reshape(-1)).sum() / (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(weighted.reshape(()), wanted)
    assert request.output.log_probs.shape == (int((labels[:, 1:] != -100).sum()),)
    torch.testing.assert_close(head(hidden), layer(hidden))


def test_threshold_counts_every_supervised_token_in_the_normalizer() -> None:
    hidden, weight, labels, _, _ = inputs()
    out = objective_loss(hidden, weight, labels, Threshold(NLL(), 0.5))
    kept = out.log_probs[(labels != -100) & (out.log_probs >= math.log(0.5))]
    torch.testing.assert_close(out.loss, -kept.sum() / (labels != -100).sum())


def test_entropy_is_finite_if_a_logit_is_minus_infinity() -> None:
    hidden, weight, labels, bias, _ = inputs()
    bias = bias.detach().clone()
    labels[labels == 3] = 4
    bias[3] = -torch.inf
    with torch.no_grad():
        output = objective_loss(hidden, weight, labels, TokenLoss.of(NLL(), ["entropy"]), bias=bias)
    kept = labels != -100
    log_p = (hidden @ weight.t() + bias)[kept].log_softmax(-1)
    expected = torch.special.entr(log_p.exp()).sum(-1)
    assert output.entropy is not None
    torch.testing.assert_close(output.entropy[kept], expected.detach())


def test_statistics_of_a_token_loss_are_returned() -> None:
    hidden, weight, labels, _, _ = inputs()
    for objective in (NLL(), LabelSmoothing(0.1)):
        asked = TokenLoss.of(objective, ["entropy", "log_complement", "top_token"])
        got, plain = (
            objective_loss(hidden, weight, labels, asked, chunk_size=5),
            objective_loss(hidden, weight, labels, NLL()),
        )
        kept = labels != -100
        log_p = (hidden @ weight.t())[kept].log_softmax(-1).detach()
        close(got.entropy[kept], -(log_p.exp() * log_p).sum(-1), torch.float64)
        close(got.log_complement[kept], torch.log1p(-plain.log_probs[kept].exp()), torch.float64)
        assert got.top_token[kept].tolist() == log_p.argmax(-1).tolist()
        assert not got.entropy[~kept].any()
        assert plain.entropy is plain.log_complement is None
