"""Laws of the objectives. Each member is tested against every law that applies to it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lit_probsft import objectives
from lit_probsft.cli.config.composition import Composer
from lit_probsft.errors import UserError
from lit_probsft.objectives import (
    ASFT,
    DEFT,
    DFT,
    EAFT,
    GEM,
    IDFT,
    NLL,
    PSFT,
    SCE,
    TALR,
    Anchored,
    Balanced,
    Brier,
    CapabilityPower,
    Cayley,
    ChordPhi,
    Focal,
    Huber,
    InfoSFT,
    LabelSmoothing,
    LogOneMinusP,
    NegP,
    Objective,
    Poly1,
    Power,
    PowerSchedule,
    QuantileThreshold,
    RunningPower,
    Threshold,
    TokenStats,
    TrSFT,
)
from tests.members import ALL, CONTEXT, OF_P_ALONE, reference

of_p_alone = pytest.mark.parametrize("objective", OF_P_ALONE, ids=repr)
every_member = pytest.mark.parametrize("objective", ALL, ids=repr)


def logit(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return p.log() - q.log()


# W as functions of p and q = 1 - p.
CLOSED_FORMS = [
    (NLL(), lambda p, q: q),
    (NegP(), lambda p, q: p * q),
    (Power(0.0), lambda p, q: q),
    (Power(0.3), lambda p, q: p**0.3 * q),
    (Power(10.0), lambda p, q: p**10 * q),
    (Power(-1.5), lambda p, q: p**-1.5 * q),
    (LogOneMinusP(1e-3), lambda p, q: p * q / (q + 1e-3)),
    (DFT(), lambda p, q: p * q),
    (Threshold(NLL(), 0.2, 0.7), lambda p, q: q * ((p >= 0.2) & (p <= 0.7))),
    (Focal(2.0), lambda p, q: q**2 * (q - 2 * p * p.log())),
    (Focal(0.5), lambda p, q: q**0.5 * (q - 0.5 * p * p.log())),
    (Huber(0.3), lambda p, q: p * q * q.clamp(max=0.3)),
    (Poly1(2.0), lambda p, q: q * (1 + 2 * p)),
    (Poly1(-0.5), lambda p, q: q * (1 - 0.5 * p)),
    (SCE(0.5, 0.2, -4.0), lambda p, q: q * (0.5 + 0.8 * p)),
    (TrSFT(0.1), lambda p, q: (p / 0.1).clamp(max=1) * q),
    (ChordPhi(), lambda p, q: p * q**2),
    (InfoSFT(0.9), lambda p, q: p * q * (1 - logit(p, q) / math.log(9)).clamp(min=0)),
    (TALR(0.7, 0.2), lambda p, q: (p ** (1 / 0.7)).clamp(min=0.2) * q),
    (Cayley(0.0), lambda p, q: p ** (p / (2 - p)).clamp(min=1e-3) * q),
    (Balanced(NegP()), lambda p, q: 3 * p * q),
    (Balanced(NegP(), 0.2, 0.3), lambda p, q: 1.5 * p * q),
]


def stats(log_probs: torch.Tensor, **fields) -> TokenStats:
    return TokenStats(
        log_probs=log_probs,
        **{
            "entropy": torch.ones_like(log_probs).detach(),
            "collision": torch.full_like(log_probs, 0.5).detach(),
            "log_complement": torch.log(-torch.expm1(log_probs.detach().clamp(max=-1e-6))),
            "top_entropy": torch.full_like(log_probs, 0.7).detach(),
            "reference_log_probs": (1.2 * log_probs - 0.1).detach(),
            **CONTEXT,
            **fields,
        },
    )


def with_logits(n: int, vocabulary: int, dtype: torch.dtype) -> TokenStats:
    logits = (torch.randn(n, vocabulary, dtype=torch.float64) * 3).to(dtype).requires_grad_()
    labels = torch.randint(vocabulary, (n,))
    log_probs = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    return stats(log_probs, logits=logits, labels=labels, reference_logits=reference_logits(n, vocabulary).to(dtype))


def reference_logits(n: int, vocabulary: int) -> torch.Tensor:
    return reference(n, vocabulary).logits(slice(None))


@every_member
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_loss_keeps_shape_and_dtype(objective: Objective, dtype: torch.dtype) -> None:
    tokens = with_logits(13, 7, dtype)
    loss = objective.loss(tokens)
    assert loss.shape == (13,)
    assert loss.dtype == dtype


@of_p_alone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_finite_down_to_log_p_of_minus_ten_thousand(
    objective: Objective, dtype: torch.dtype
) -> None:
    magnitudes = torch.cat([torch.zeros(1), torch.logspace(-8, 4, 200)])
    log_probs = (-magnitudes).to(dtype).requires_grad_()
    loss = objective.loss(stats(log_probs))
    loss.float().sum().backward()
    assert loss.isfinite().all()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()


@pytest.mark.parametrize("alpha", [-0.5, -2.0, -30.0])
def test_negative_power_is_constant_beyond_its_clamp(alpha: float) -> None:
    edge = 80 / alpha
    log_probs = torch.tensor([edge * 0.99, edge * 1.01, edge * 50], requires_grad=True)
    loss = Power(alpha).loss(TokenStats(log_probs))
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert gradient[0] < 0
    assert gradient[1] == gradient[2] == 0
    torch.testing.assert_close(loss[1:], torch.full((2,), math.expm1(80) / -alpha))


# These have a constant factor: only their gradient matters, and their value is not a loss of p.
HELD_CONSTANT = re.compile("DFT|ChordPhi|InfoSFT|TALR")


@pytest.mark.parametrize("objective", [m for m in OF_P_ALONE if not HELD_CONSTANT.search(repr(m))], ids=repr)
def test_loss_does_not_increase_with_p_inside_the_interval(objective: Objective) -> None:
    low, high = objective.interval
    p = torch.linspace(max(low, 1e-6) + 1e-9, high - 1e-9, 500, dtype=torch.float64)
    assert (objective.loss(TokenStats(p.log())).diff() <= 1e-12).all()


@of_p_alone
def test_weight_is_not_negative_unless_signed(objective: Objective) -> None:
    p = torch.linspace(0, 1, 2001)[1:]
    assert not objective.signed
    assert (objective.gradient_weight(p.log()) >= 0).all()


@every_member
def test_signed_tells_whether_the_weight_can_be_negative(objective: Objective) -> None:
    tokens = with_logits(400, 5, torch.float64)
    if objective != LabelSmoothing(0.0):
        assert (objective.gradient_weight(tokens).min() < 0) == objective.signed


@every_member
def test_gradcheck_in_double_with_stop_gradient_weights_frozen(objective: Objective) -> None:
    """Frozen fields hold the stop-gradient fixed, so the numerical derivative equals the intended gradient."""
    vocabulary, labels = 6, torch.tensor([0, 3, 5])
    start = torch.randn(3, vocabulary, dtype=torch.float64)
    fixed = start.clone()  # gradcheck moves the original
    frozen = stats(start.log_softmax(-1).gather(-1, labels[:, None])[:, 0])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        log_probs = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        return objective.loss(
            frozen.replace(
                log_probs=log_probs,
                logits=logits,
                labels=labels,
                reference_logits=reference_logits(3, vocabulary),
                frozen_log_probs=frozen.log_probs,
                frozen_logits=fixed,
            )
        )

    assert torch.autograd.gradcheck(loss, start.requires_grad_())


@every_member
def test_gradient_weight_is_the_pull_on_the_target_logit(objective: Objective) -> None:
    tokens = with_logits(17, 9, torch.float64)
    (gradient,) = torch.autograd.grad(objective.loss(tokens).sum(), tokens.logits)
    pull = -gradient.gather(-1, tokens.labels[:, None])[:, 0]
    torch.testing.assert_close(objective.gradient_weight(tokens), pull, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("objective", "closed_form"), CLOSED_FORMS, ids=lambda x: repr(x) if isinstance(x, Objective) else ""
)
def test_gradient_weight_equals_the_closed_form(objective: Objective, closed_form) -> None:
    p = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)
    expected = closed_form(p, 1 - p).double()
    torch.testing.assert_close(objective.gradient_weight(p.log()), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("objective", "closed_form"), CLOSED_FORMS, ids=lambda x: repr(x) if isinstance(x, Objective) else ""
)
def test_fp32_keeps_the_digits_of_the_weight_at_both_ends(objective: Objective, closed_form) -> None:
    for log_probs in (torch.linspace(-30, -1e-3, 300), -torch.logspace(-12, -3, 50)):
        expected = closed_form(log_probs.double().exp(), -torch.expm1(log_probs.double())).double()
        got = objective.gradient_weight(log_probs).double()
        big = expected > 1e-30
        torch.testing.assert_close(got[big], expected[big], rtol=2e-5, atol=0)


def test_label_smoothing_weight_is_smoothed_target_minus_p() -> None:
    tokens = with_logits(50, 8, torch.float64)
    expected = 1 - 0.1 + 0.1 / 8 - tokens.log_probs.exp()
    torch.testing.assert_close(LabelSmoothing(0.1).gradient_weight(tokens), expected.detach())


WITH_STATISTICS_CLOSED_FORMS = [
    (DEFT(), lambda p, t: p**t.collision * (1 - p)),
    (EAFT(k=4, alpha=2.0), lambda p, t: (t.top_entropy / math.log(4)) ** 2 * (1 - p)),
    (IDFT(0.5, 0.2, 3.0), lambda p, t: idft_weight(p, ((p * t.entropy.exp()) ** -2).clamp(0.2, 3.0))),
    (TALR(), lambda p, t: (p ** (1 / 1.5)).clamp(min=0.01) * (1 - p)),
    (Cayley(0.5), lambda p, t: p ** (0.2 + 0.8 * p / (2 - p)) * (1 - p)),
    (CapabilityPower(), lambda p, t: p ** (3 / 7) * (1 - p)),
    (CapabilityPower(max_alpha=0.2), lambda p, t: p**0.2 * (1 - p)),
    (RunningPower(), lambda p, t: p**0.4 * (1 - p)),
    (RunningPower(2.0), lambda p, t: p**0.16 * (1 - p)),
    (QuantileThreshold(NLL(), 0.7), lambda p, t: (1 - p) * (p.logit() >= -2)),
    (QuantileThreshold(NegP(), 0.3, "bottom"), lambda p, t: p * (1 - p) * (p.logit() <= -2)),
    (PowerSchedule(-1.0, 2.0), lambda p, t: p**-0.1 * (1 - p)),
    (Brier(), lambda p, t: 2 * p * (1 - 2 * p + t.logits.softmax(-1).square().sum(-1))),
    (ASFT(0.3), lambda p, t: p * (1 - p) + 0.3 * (reference_p(t) - p)),
    (Anchored(NLL(), 0.3), lambda p, t: 1 - p + 0.3 * (reference_p(t) - p)),
    (
        Anchored(NegP(), 0.3, "reverse"),
        lambda p, t: p * (1 - p) + 0.3 * p * (divergence(t) - p.log() + reference_p(t).log()),
    ),
    (
        PSFT(0.2),
        lambda p, t: torch.where(p < 1.2 * t.reference_log_probs.exp(), p / t.reference_log_probs.exp() * (1 - p), 0),
    ),
    (GEM(0.5), lambda p, t: 1 - (2 * t.logits).softmax(-1).gather(-1, t.labels[:, None])[:, 0]),
]


def reference_p(tokens: TokenStats) -> torch.Tensor:
    return tokens.reference_logits.softmax(-1).gather(-1, tokens.labels[:, None])[:, 0]


def divergence(tokens: TokenStats) -> torch.Tensor:
    """KL(p || q) by its definition."""
    p, q = tokens.logits.softmax(-1), tokens.reference_logits.softmax(-1)
    return (p * (p / q).log()).sum(-1)


def idft_weight(p: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    return p**gamma * (1 + gamma * p.log()) * (1 - p)


@pytest.mark.parametrize(
    ("objective", "closed_form"),
    WITH_STATISTICS_CLOSED_FORMS,
    ids=lambda x: repr(x) if isinstance(x, Objective) else "",
)
def test_weight_with_statistics_held_constant_equals_the_closed_form(objective: Objective, closed_form) -> None:
    tokens = with_logits(60, 9, torch.float64)
    varied = {name: torch.rand(60, dtype=torch.float64) + 0.2 for name in ("entropy", "collision", "top_entropy")}
    tokens = tokens.replace(**varied)
    expected = closed_form(tokens.log_probs.exp(), tokens).detach()
    torch.testing.assert_close(objective.gradient_weight(tokens), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("beta", [0.3, 0.7, 1.0])
def test_gem_has_the_gradient_of_nll_at_its_temperature(beta: float) -> None:
    tokens = with_logits(30, 11, torch.float64)
    (got,) = torch.autograd.grad(GEM(beta).loss(tokens).sum(), tokens.logits, retain_graph=True)
    tempered = torch.nn.functional.cross_entropy(tokens.logits / beta, tokens.labels, reduction="sum") * beta
    torch.testing.assert_close(got, torch.autograd.grad(tempered, tokens.logits)[0])


def test_brier_is_the_squared_distance_from_the_target() -> None:
    tokens = with_logits(30, 11, torch.float64)
    target = torch.nn.functional.one_hot(tokens.labels, 11)
    expected = (tokens.logits.softmax(-1) - target).square().sum(-1)
    torch.testing.assert_close(Brier().loss(tokens), expected)


@pytest.mark.parametrize("objective", [m for m in OF_P_ALONE if m.mass(0, 1) < math.inf], ids=repr)
def test_balanced_members_have_the_same_mean_weight_over_uniform_p(objective: Objective) -> None:
    balanced = Balanced(objective)
    assert balanced.mass(0, 1) == pytest.approx(0.5)
    assert Objective.mass(balanced, 0, 1) == pytest.approx(0.5, rel=1e-4)  # quadrature over a kink
    assert balanced.lean() == pytest.approx(objective.lean())


def test_mean_weight_measured_over_tokens_is_balanced_over_them() -> None:
    tokens = with_logits(500, 9, torch.float64)
    for objective in (NegP(), DEFT(), Brier()):
        mean = objective.gradient_weight(tokens).mean().item()
        assert Balanced(objective, mean).gradient_weight(tokens).mean().item() == pytest.approx(0.5)


def test_label_smoothing_equals_torch() -> None:
    tokens = with_logits(50, 8, torch.float64)
    expected = torch.nn.functional.cross_entropy(tokens.logits, tokens.labels, label_smoothing=0.3, reduction="none")
    torch.testing.assert_close(LabelSmoothing(0.3).loss(tokens), expected)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Power(0.0), NLL()),
        (Power(1.0), NegP()),
        (LabelSmoothing(0.0), NLL()),
        (Focal(0.0), NLL()),
        (Poly1(0.0), NLL()),
        (SCE(1.0, 0.5, -4.0), Poly1(2.0)),
        (SCE(0.7, 0.0), Balanced(NLL(), 0.5, 0.35)),
        (TrSFT(1.0), NegP()),
        (EAFT(alpha=0.0), NLL()),
        (IDFT(min_gamma=0.0, max_gamma=0.0), NLL()),
        (PowerSchedule(0.0, 1.0), Power(0.3)),
        (PowerSchedule(2.0, 2.0), Power(2.0)),
        (Balanced(NLL()), NLL()),
        (ASFT(0.2), Anchored(DFT(), 0.2)),
        *[(Anchored(member, 0.0), member) for member in ALL],
        (Balanced(Power(1.0)), Balanced(NegP())),
        *[(Balanced(member, 0.3, 0.3), member) for member in ALL],
        *[(Threshold(member, 0, 1), member) for member in ALL],
    ],
    ids=repr,
)
def test_special_cases_are_the_same_objective(one: Objective, other: Objective) -> None:
    tokens = with_logits(31, 11, torch.float64)
    torch.testing.assert_close(one.loss(tokens), other.loss(tokens), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(one.gradient_weight(tokens), other.gradient_weight(tokens), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_an_anchor_has_no_loss_and_no_pull_where_the_model_equals_the_reference(direction: str) -> None:
    tokens = with_logits(31, 11, torch.float64)
    tokens = tokens.replace(reference_logits=tokens.logits.detach() + 3)  # the same distribution
    anchored = Anchored(NegP(), 2.0, direction)
    torch.testing.assert_close(anchored.loss(tokens), NegP().loss(tokens), rtol=0, atol=1e-14)
    torch.testing.assert_close(anchored.gradient_weight(tokens), NegP().gradient_weight(tokens), rtol=0, atol=1e-14)


def test_both_directions_of_an_anchor_equal_torch() -> None:
    tokens = with_logits(31, 11, torch.float64)
    log_p, log_q = tokens.logits.log_softmax(-1), tokens.reference_logits.log_softmax(-1)
    for direction, input, target in (("forward", log_p, log_q), ("reverse", log_q, log_p)):
        expected = torch.nn.functional.kl_div(input, target, log_target=True, reduction="none").sum(-1)
        got = Anchored(NLL(), 1.0, direction).loss(tokens) - NLL().loss(tokens)
        torch.testing.assert_close(got, expected)


def test_psft_is_ppos_clipped_ratio_with_the_advantage_one() -> None:
    tokens = with_logits(200, 5, torch.float64)
    ratio = (tokens.log_probs - tokens.reference_log_probs).exp()
    expected = -torch.minimum(ratio, ratio.clamp(0.7, 1.3))
    torch.testing.assert_close(PSFT(0.3).loss(tokens), expected)
    assert 0 < (PSFT(0.3).gradient_weight(tokens) == 0).double().mean() < 1


def test_psft_is_finite_where_a_token_was_nearly_impossible_for_the_reference() -> None:
    log_probs = torch.tensor([-1e4, -1.0, 0.0], requires_grad=True)
    loss = PSFT().loss(TokenStats(log_probs, reference_log_probs=torch.tensor([-1.0, -1e4, -1e4])))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert log_probs.grad.tolist() == [0, 0, 0]


def test_dft_has_the_gradient_of_neg_p_at_another_loss() -> None:
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    torch.testing.assert_close(DFT().gradient_weight(p.log()), NegP().gradient_weight(p.log()))
    assert not torch.allclose(DFT().loss(TokenStats(p.log())), NegP().loss(TokenStats(p.log())))


@settings(deadline=None)
@given(alpha=st.floats(-1e-6, 1e-6), log_p=st.floats(-1e4, -1e-9))
def test_power_is_smooth_through_zero(alpha: float, log_p: float) -> None:
    """No jump where the code changes its formula: (1 - e^x) / alpha = -log p (1 + x/2 + ...), x = alpha log p."""
    x = alpha * log_p
    expected = -log_p * (1 + x / 2 + x**2 / 6 + x**3 / 24 + x**4 / 120)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-6)):
        got = Power(alpha).loss(TokenStats(torch.tensor([log_p], dtype=dtype))).item()
        assert got == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("alpha", [1e-13, 9e-13, -1e-13])
def test_power_differs_from_nll_however_small_alpha_is(alpha: float) -> None:
    log_p = torch.tensor([-1e4], dtype=torch.float64)
    excess = Power(alpha).loss(TokenStats(log_p)) - 1e4
    assert excess.item() == pytest.approx(-alpha * 1e8 / 2, rel=1e-3)


@given(alpha=st.floats(-3, 12), log_p=st.floats(-20, 0))
def test_power_equals_its_formula(alpha: float, log_p: float) -> None:
    expected = -log_p if abs(alpha * log_p) < 1e-10 else -math.expm1(alpha * log_p) / alpha
    got = Power(alpha).loss(TokenStats(torch.tensor([log_p], dtype=torch.float64))).item()
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("edge", [0.03807, 0.2, 0.5, 0.9982, 0.99998045])
def test_threshold_is_closed_at_both_ends_in_fp32(edge: float) -> None:
    log_probs = torch.tensor(math.log(edge), dtype=torch.float32)
    below = torch.nextafter(log_probs, torch.tensor(-math.inf))
    above = torch.nextafter(log_probs, torch.tensor(0.0))
    around = torch.stack([below, log_probs, above])
    assert Threshold(min_prob=edge).inside(around).tolist() == [False, True, True]
    assert Threshold(max_prob=edge).inside(around).tolist() == [True, True, False]
    assert Threshold(min_prob=edge, max_prob=edge).inside(around).tolist() == [False, True, False]


def test_threshold_gives_a_zero_gradient_where_its_base_is_infinite() -> None:
    @dataclass(frozen=True)
    class Steep(Objective):
        """log(-log p): its slope is infinite at p = 1."""

        def loss(self, tokens: TokenStats) -> torch.Tensor:
            return tokens.log_probs.neg().log()

    log_probs = torch.tensor([0.0, -0.5], requires_grad=True)
    loss = Threshold(Steep(), 0.0, 0.9).loss(TokenStats(log_probs))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, math.log(0.5)])
    assert log_probs.grad.tolist() == pytest.approx([0, -2])


@pytest.mark.parametrize(
    ("objective", "leaning"),
    [(NLL(), False), (Power(0.5), False), (NegP(), True), (DFT(), True), (Power(10), True), (LogOneMinusP(), True)],
    ids=repr,
)
def test_lean_agrees_with_what_the_paper_calls_prior_leaning(objective: Objective, leaning: bool) -> None:
    assert (objective.lean() >= 0.5) == leaning


def test_neg_p_is_exactly_balanced() -> None:
    assert NegP().lean() == 0.5
    assert NLL().lean() == 0.25


@pytest.mark.parametrize("objective", [m for m in OF_P_ALONE if m.mass(0, 0.5) < math.inf], ids=repr)
def test_closed_mass_equals_the_quadrature_of_the_weight(objective: Objective) -> None:
    for low, high in ((0.0, 0.5), (0.5, 1.0), (0.3, 0.31)):
        assert objective.mass(low, high) == pytest.approx(Objective.mass(objective, low, high), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("alpha", [-1.0, -2.0])
def test_lean_is_0_if_the_mass_diverges_at_0(alpha: float) -> None:
    assert Power(alpha).lean(0.5) == Power(alpha).lean(1e-6) == 0.0
    assert Power(alpha).lean(0.0) == 1.0
    assert Objective.mass(Power(alpha), 0, 0.5) == math.inf
    assert 0 < Threshold(Power(alpha), 0.1).lean() < 0.5


def test_lean_of_an_extreme_power_is_a_number() -> None:
    assert Power(-2000.0).lean() == 0
    assert Threshold(Power(-50.0), 1e-10).lean() == 0
    assert Power(1e30).lean() == 1


@pytest.mark.parametrize("objective", [LabelSmoothing(0.1)], ids=repr)
def test_lean_refuses_a_weight_that_is_not_a_function_of_p(objective: Objective) -> None:
    with pytest.raises(ValueError, match="not a non-negative function of p alone"):
        objective.lean()
    with pytest.raises(ValueError, match="tau"):
        NLL().lean(1.5)


MEMBERS_OF_THE_PACKAGE = [m for m in ALL if type(m).__module__.startswith("lit_probsft")]


def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    return parser


@pytest.mark.parametrize("objective", MEMBERS_OF_THE_PACKAGE, ids=repr)
def test_yaml_round_trip(objective: Objective) -> None:
    config = yaml.safe_load(yaml.safe_dump({"objective": objective.as_config()}))
    parsed = parser().parse_object(config)
    assert parser().instantiate(parsed).objective == objective
    again = yaml.safe_load(parser().dump(parsed))
    assert parser().instantiate(parser().parse_object(again)).objective == objective


CLASSES = list(dict.fromkeys(type(member) for member in MEMBERS_OF_THE_PACKAGE))


@pytest.mark.parametrize("new", CLASSES)
@pytest.mark.parametrize(
    "old", [Power(3.0), Threshold(NegP(), 0.3), LabelSmoothing(0.7), Balanced(NegP(), 0.3), NLL()], ids=repr
)
def test_switching_the_class_on_the_command_line_gives_the_new_class_with_its_own_defaults(
    old: Objective, new: type[Objective], tmp_path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"objective": old.as_config()}))
    words = ["--config", str(config), "--objective", new.__name__]
    content = Composer("fit", {"objective": Objective, "config": str}, []).compose(words).content
    assert parser().instantiate(parser().parse_object(content)).objective == new()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Power(math.nan), "Power.alpha"),
        (lambda: Power(1e39), "Power.alpha"),
        (lambda: LogOneMinusP(0.0), "LogOneMinusP.eps"),
        (lambda: Threshold(NLL(), 0.6, 0.4), "min_prob = 0.6, max_prob = 0.4"),
        (lambda: Threshold(NLL(), -0.1), "min_prob = -0.1"),
        (lambda: LabelSmoothing(1.5), "LabelSmoothing.epsilon"),
        (lambda: Focal(-1.0), "Focal.gamma"),
        (lambda: Huber(0.0), "Huber.delta"),
        (lambda: Poly1(-1.5), "Poly1.epsilon"),
        (lambda: SCE(log_zero=4.0), "SCE: .*log_zero=4.0"),
        (lambda: TrSFT(0.0), "TrSFT.alpha"),
        (lambda: InfoSFT(0.5), "InfoSFT.max_prob"),
        (lambda: Cayley(math.nan), "Cayley.floor"),
        (lambda: TALR(-1.0), "TALR.tau"),
        (lambda: TALR(floor=1.5), "TALR.floor"),
        (lambda: GEM(1.5), "GEM.beta"),
        (lambda: EAFT(k=1), "EAFT.k"),
        (lambda: EAFT(alpha=-1.0), "EAFT.alpha"),
        (lambda: IDFT(min_gamma=3.0), "IDFT: .*min_gamma=3.0"),
        (lambda: PowerSchedule(end=math.inf), "PowerSchedule.end"),
        (lambda: Anchored(NLL(), -1.0), "Anchored.weight"),
        (lambda: ASFT(math.inf), "ASFT.weight"),
        (lambda: ASFT(direction="sideways"), "ASFT.direction: expected forward or reverse, got 'sideways'"),
        (lambda: PSFT(0.0), "PSFT.clip"),
        (lambda: Balanced(NegP(), -0.1), r"Balanced.mean_weight: .* above 0, got -0.1"),
        (
            lambda: Balanced(Power(-2.0)),
            r"Balanced.mean_weight: .* of Power\(alpha=-2.0\) .*over uniform p it is undefined",
        ),
        (lambda: Balanced(IDFT()), r"Balanced.mean_weight: .*over uniform p it is undefined"),
        (lambda: Balanced(NegP(), target=-1.0), "Balanced.target"),
    ],
)
def test_a_value_out_of_range_is_an_error_with_its_name(build, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build()


def test_a_member_that_is_not_a_dataclass_is_an_error() -> None:
    class Forgotten(Objective):
        def loss(self, tokens: TokenStats) -> torch.Tensor:
            return -tokens.log_probs

    with pytest.raises(UserError, match="Forgotten.*@dataclass"):
        Forgotten().as_config()


def test_every_public_member_is_in_the_list_for_these_laws() -> None:
    public = {getattr(objectives, name) for name in objectives.__all__} - {Objective, TokenStats}
    assert public == {type(member) for member in MEMBERS_OF_THE_PACKAGE}
