"""The share of wrong rows is estimated from what rows look like to a model, so the rows here are drawn that way."""

import numpy as np
import pytest

from lit_probsft.analysis.noise import RowStatistics, combine, estimate_noise
from lit_probsft.analysis.survey import FEWEST_ROWS


def draw(rows=120, share=0.3, surprise=1.5, *, style=0.2, ignorant=0.1, contradicted=0.2, seed=0):
    """Rows of a task that the model knows, some of them wrong and more surprising, and which ones are wrong."""
    rng = np.random.default_rng(seed)
    wrong = np.arange(rows) < round(share * rows)
    entropy = rng.normal(1.0, 0.15, rows) + 0.2 * wrong
    excess = rng.normal(style, 0.15, rows) + surprise * wrong
    constant = np.ones(rows)
    known = RowStatistics(
        tokens=20 * constant,
        mean_prob=0.6 * constant,
        nll=excess + entropy,
        entropy=entropy,
        confidence=0.7 * constant,
        ignorant=ignorant * constant,
        contradicted=0.05 + contradicted * wrong,
    )
    return known, wrong


@pytest.mark.parametrize(("share", "style"), [(0.0, -0.4), (0.1, 0.6), (0.3, -0.4), (0.6, 0.6)])
def test_the_planted_share_is_found_whatever_the_style_of_all_rows(share, style):
    rows, wrong = draw(share=share, style=style)
    estimate = estimate_noise(rows)
    assert estimate.share == pytest.approx(share, abs=0.03)
    low, high = estimate.interval
    assert low <= share <= high
    assert high - low < 0.25
    assert ((estimate.scores > 0) == wrong).mean() > 0.98


def test_rows_that_all_disagree_a_little_are_not_wrong():
    rows, _ = draw(share=0.0, style=0.8)
    skewed = vars(rows) | {"nll": rows.entropy + np.random.default_rng(1).gamma(4.0, 0.2, len(rows.tokens))}
    assert estimate_noise(RowStatistics(**skewed)).share < 0.05


def test_a_harder_group_is_wrong_only_if_it_is_contradicted_or_not_less_known():
    rows, wrong = draw(contradicted=0.0)
    assert estimate_noise(rows).share == pytest.approx(0.3, abs=0.03)
    less_known = vars(rows) | {"ignorant": 0.1 + 0.6 * wrong}
    assert estimate_noise(RowStatistics(**less_known)).share == 0
    contradicted = less_known | {"contradicted": 0.05 + 0.1 * wrong}
    assert estimate_noise(RowStatistics(**contradicted)).share == pytest.approx(0.3, abs=0.03)


def test_an_ignorant_model_says_nothing():
    estimate = estimate_noise(draw(share=0.0, ignorant=0.9)[0])
    assert np.isnan(estimate.share)
    assert estimate.interval == (0.0, 1.0)


def test_noise_that_an_ignorant_model_sees_is_a_lower_bound():
    estimate = estimate_noise(draw(ignorant=0.9)[0])
    assert estimate.share == pytest.approx(0.3, abs=0.03)
    assert estimate.interval[0] > 0.2
    assert estimate.interval[1] == 1


def test_a_model_that_contradicts_every_row_says_nothing():
    rows, _ = draw(share=0.0)
    estimate = estimate_noise(RowStatistics(**vars(rows) | {"contradicted": np.full(120, 0.8)}))
    assert np.isnan(estimate.share)


def test_the_order_of_rows_does_not_matter_and_rows_without_tokens_do_not_count():
    rows, _ = draw()
    order = np.random.default_rng(2).permutation(120)
    shuffled = {name: np.append(values[order], 0.0) for name, values in vars(rows).items()}
    estimate, other = estimate_noise(rows), estimate_noise(RowStatistics(**shuffled))
    assert other.share == pytest.approx(estimate.share, abs=1e-3)
    assert np.isnan(other.scores[-1])
    assert other.scores[:-1] == pytest.approx(estimate.scores[order], abs=1e-3)


@pytest.mark.parametrize("rows", [0, 1, 9, FEWEST_ROWS - 1, FEWEST_ROWS, 2100])
def test_an_interval_is_given_from_thirty_rows_on_and_a_share_from_ten(rows):
    estimate = estimate_noise(draw(rows)[0])
    assert (estimate.interval is not None) is (rows >= FEWEST_ROWS)
    assert estimate.scores.shape == (rows,)
    assert np.isnan(estimate.share) == (rows < 10)
    if rows >= FEWEST_ROWS - 1:
        assert estimate.share == pytest.approx(0.3, abs=0.05)


def test_equal_rows_are_one_group():
    constant = np.full(40, 0.5)
    assert estimate_noise(RowStatistics(*[constant] * 5, 0 * constant, 0 * constant)).share == 0


def test_an_easy_and_a_hard_part_together_are_not_half_wrong():
    easy, hard = draw(60, surprise=1.0)[0], draw(60, share=0.0, style=3.0, ignorant=0.08, seed=1)[0]
    order = np.random.default_rng(2).permutation(120)
    parts = [np.flatnonzero(order < 60), np.flatnonzero(order >= 60)]
    together = RowStatistics(**{name: np.concatenate([vars(easy)[name], vars(hard)[name]]) for name in vars(easy)})
    assert estimate_noise(together).share > 0.4
    estimates = [estimate_noise(easy), estimate_noise(hard)]
    estimate = combine(estimates, parts)
    assert estimate.share == pytest.approx(0.15, abs=0.03)
    low, high = estimate.interval
    assert low <= 0.15 <= high < 0.4
    assert (estimate.scores[parts[0]] == estimates[0].scores).all()
    assert set(np.flatnonzero(estimate.scores > 0)) <= set(parts[0])


def test_a_part_without_an_estimate_widens_the_interval_only():
    known, unknown = estimate_noise(draw()[0]), estimate_noise(draw(40, share=0.0, ignorant=0.9)[0])
    estimate = combine([known, unknown], [np.arange(120), np.arange(120, 160)])
    assert estimate.share == pytest.approx(0.75 * known.share)
    assert estimate.interval == pytest.approx((0.75 * known.interval[0], 0.75 * known.interval[1] + 0.25))
    assert np.isnan(combine([unknown], [np.arange(40)]).share)
    clean = estimate_noise(draw(30, share=0.0)[0])
    assert np.isnan(combine([clean, unknown], [np.arange(30), np.arange(30, 70)]).share)
    assert (combine([clean, unknown], [np.arange(30), np.arange(30, 70)]).scores <= 0).all()
