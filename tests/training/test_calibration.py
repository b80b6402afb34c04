"""Calibration, entropy and top p against plain loops over the whole softmax."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.head.loss import HeadOutput, objective_loss
from lit_probsft.objectives import GEM, NLL, LabelSmoothing
from lit_probsft.training.metrics import Calibration
from tests.members import EntropyWeighted


def output(top: list[float], correct: list[bool], entropy: list[float] | None = None) -> HeadOutput:
    nothing = torch.zeros(len(top))
    of_entropy = None if entropy is None else torch.tensor(entropy)
    return HeadOutput(torch.zeros(()), nothing, nothing, torch.tensor(correct), torch.tensor(top), of_entropy)


TOKENS = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.booleans(), st.floats(0, 12, width=32)), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@given(TOKENS)
def test_ece_equals_that_of_a_plain_loop(tokens: list[tuple[float, bool, float]]) -> None:
    metric = Calibration()
    metric.update(output(*map(list, zip(*tokens, strict=True))))
    ece = 0.0
    for index in range(15):
        last = index == 14
        inside = [
            t
            for t in tokens
            if index <= torch.tensor(t[0]).mul(15).item() and (last or torch.tensor(t[0]).mul(15).item() < index + 1)
        ]
        if inside:
            confidence = sum(p for p, _, _ in inside) / len(inside)
            accuracy = sum(right for _, right, _ in inside) / len(inside)
            ece += len(inside) / len(tokens) * abs(confidence - accuracy)
    found = metric.compute()
    assert float(found["ece"]) == pytest.approx(ece, abs=1e-6)
    assert float(found["entropy"]) == pytest.approx(sum(e for *_, e in tokens) / len(tokens), abs=1e-6)
    assert float(found["bins"][:, 0].sum()) == len(tokens)


@pytest.mark.parametrize(("right", "ece"), [(49, 0.0), (19, 0.2)])
def test_a_model_whose_accuracy_equals_its_confidence_is_calibrated(right: int, ece: float) -> None:
    metric = Calibration()
    metric.update(output([0.25] * 100 + [0.98] * 50, [i < 25 for i in range(100)] + [i < right for i in range(50)]))
    assert float(metric.compute()["ece"]) == pytest.approx(ece, abs=1e-6)
    assert metric.compute()["bins"][14].tolist() == pytest.approx([50, 49, right], abs=1e-5)


def test_a_model_of_nan_is_measured_without_an_error() -> None:
    metric = Calibration()
    metric.update(output([math.nan, 0.5], [False, True], [math.nan, 1.0]))
    assert float(metric.compute()["bins"][:, 0].sum()) == 2


@settings(max_examples=30, deadline=None)
@given(TOKENS, TOKENS)
def test_sums_of_two_ranks_equal_those_of_one_to_the_bit(one: list, other: list) -> None:
    metrics = [Calibration() for _ in range(3)]
    for metric, tokens in zip(metrics, (one, other, other + one), strict=True):
        metric.update(output(*map(list, zip(*tokens, strict=True))))
    first, second, both = metrics
    first.merge_state(second)
    merged, alone = first.compute(), both.compute()
    assert all(torch.equal(merged[name], alone[name]) for name in alone)


def test_a_cast_does_not_change_the_sums_and_no_tokens_give_nan() -> None:
    metric = torch.nn.ModuleList([Calibration()]).to(torch.bfloat16)[0]
    assert math.isnan(float(metric.compute()["ece"]))
    metric.reset()
    for _ in range(3):
        metric.update(output([0.9] * 200, [True] * 200, [1.0] * 200))
    assert float(metric.compute()["bins"].sum()) == pytest.approx(600 * 2.9)
    assert float(metric.compute()["ece"]) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("objective", [NLL(), EntropyWeighted(), LabelSmoothing(0.1), GEM()], ids=repr)
@pytest.mark.parametrize("gradient", [True, False])
def test_the_head_returns_the_largest_p_and_the_entropy_if_needed(objective: object, gradient: bool) -> None:
    hidden, weight = torch.randn(23, 8, dtype=torch.float64), 3 * torch.randn(17, 8, dtype=torch.float64)
    labels = torch.randint(0, 17, (23,))
    labels[::5] = -100
    with torch.set_grad_enabled(gradient):
        found = objective_loss(hidden.requires_grad_(gradient), weight, labels, objective, chunk_size=6)
    probs = (hidden @ weight.T).softmax(-1).detach()
    kept = labels != -100
    torch.testing.assert_close(found.top_prob, torch.where(kept, probs.amax(-1), 0.0))
    if "entropy" not in objective.needs:
        assert found.entropy is None
    else:
        torch.testing.assert_close(found.entropy, torch.where(kept, torch.special.entr(probs).sum(-1), 0.0))
