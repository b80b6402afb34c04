"""A model whose probabilities are NaN ends the evaluation with an error; a set without tokens does not."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_probsft.errors import UserError
from lit_probsft.objectives import NLL
from lit_probsft.training.evaluation_metrics import EvaluationMetrics
from lit_probsft.training.metrics import ProbHistogram


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize(("step", "when"), [(3, "after optimizer step 3: lower"), (0, "without any training: check")])
def test_a_nan_nll_of_tokens_is_an_error(step: int, when: str) -> None:
    metrics = EvaluationMetrics(NLL())
    metrics.sets[0].means.sums.copy_(torch.tensor([math.nan, math.nan, math.nan, 0, 0, 2]))
    module: Any = SimpleNamespace(trainer=SimpleNamespace(global_step=step))
    with pytest.raises(UserError, match=f"val/nll: expected a number, got NaN {when}"):
        metrics.log(module, "val")


def test_the_histogram_of_a_model_with_nan_counts_every_token() -> None:
    histogram = ProbHistogram()
    histogram.update(torch.full((3,), math.nan), torch.full((3,), math.nan))
    assert int(histogram.compute().sum()) == 3
