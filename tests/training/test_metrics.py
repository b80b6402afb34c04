"""The histogram of p has the resolution of float64 for every p."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_probsft.training.metrics import ProbHistogram, quantiles, share_above

SHARES = [0.0, 0.001, 0.05, 0.1, 0.3, 0.5, 0.9, 0.999, 1.0]


def log_odds(count: int, low: float = -20.0, high: float = 40.0) -> Tensor:
    return low + (high - low) * torch.rand(count, dtype=torch.float64)


def counted(odds: Tensor, dtype: torch.dtype = torch.float32) -> ProbHistogram:
    histogram = ProbHistogram()
    log_probs, log_complement = torch.nn.functional.logsigmoid(torch.stack([odds, -odds])).to(dtype)
    histogram.update(log_probs, log_complement)
    return histogram


@pytest.mark.parametrize("count", [1, 2, 10, 997, 20_000])
def test_quantiles_equal_those_of_float64_to_a_thousandth_in_log_odds(count: int) -> None:
    odds = log_odds(count)
    ordered = odds.sort().values
    places = [min(max(math.ceil(round(share * count, 6)), 1), count) - 1 for share in SHARES]
    got = quantiles(counted(odds).compute(), SHARES)
    assert got == pytest.approx([ordered[place].item() for place in places], abs=1e-3)


def test_probabilities_beyond_the_digits_of_fp32_are_distinguished() -> None:
    odds = torch.tensor([0.9999, 0.99998, 1 - 1e-9, 1 - 1e-12], dtype=torch.float64).logit()
    assert quantiles(counted(odds).compute(), [0.25, 0.5, 0.75, 1.0]) == pytest.approx(odds.tolist(), abs=1e-3)
    blind = ProbHistogram()
    blind.update(torch.nn.functional.logsigmoid(odds[:2]).float())
    assert quantiles(blind.compute(), [0.5, 1.0]) == pytest.approx(odds[:2].tolist(), abs=0.1)


def test_histograms_of_parts_add_up_whatever_the_modules_dtype() -> None:
    odds = log_odds(3000)
    parts = [counted(part).to(torch.bfloat16).compute() for part in odds.split(700)]
    assert torch.equal(torch.stack(parts).sum(0), counted(odds).compute())


def test_values_beyond_the_edges_are_counted_at_the_edges() -> None:
    histogram = ProbHistogram()
    histogram.update(torch.tensor([-1e4, 0.0]), torch.tensor([0.0, -math.inf]))
    assert int(histogram.compute()[0]) == int(histogram.compute()[-1]) == 1


def test_the_share_above_a_probability() -> None:
    p = torch.tensor([0.1, 0.54, 0.56, 0.99], dtype=torch.float64)
    assert share_above(counted(p.logit()).compute(), 0.55) == 0.5


def test_without_tokens_results_are_nan() -> None:
    empty = ProbHistogram()
    empty.update(torch.zeros(0), torch.zeros(0))
    assert math.isnan(quantiles(empty.compute(), [0.5])[0])
    assert math.isnan(share_above(empty.compute(), 0.5))
