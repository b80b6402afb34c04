"""`Survey` keeps exact sums, whatever the module that holds it is cast to."""

from __future__ import annotations

import numpy as np
import torch

from lit_probsft.analysis.survey import Survey
from lit_probsft.head.loss import HeadOutput


def test_sums_are_exact_after_a_cast_of_the_module_to_bf16() -> None:
    survey = Survey(2)
    torch.nn.ModuleList([survey]).to(torch.bfloat16)
    labels = torch.tensor([[-100, 1, 2, -100], [-100, -100, 3, 4]])
    log_probs = torch.tensor([0.05, 0.7, 0.9, 0.09]).log()
    output = HeadOutput(
        loss=torch.tensor(0.0),
        token_losses=-log_probs,
        log_probs=log_probs,
        correct=torch.tensor([False, True, True, False]),
        top_prob=torch.tensor([0.8, 0.7, 0.9, 0.71]),
        top_token=torch.tensor([7, 1, 2, 9]),
        entropy=torch.full((4,), 0.5),
    )
    survey.update({"labels": labels, "documents": torch.tensor([1, 0])}, output)
    assert survey.compute()["first"].tolist() == [[2, 9], [1, 7]]  # position from 1 on, and the model's token
    for _ in range(299):  # bf16 counts to 256
        survey.update({"labels": labels, "documents": torch.tensor([1, 0])}, output)
    sums = survey.compute()
    p = log_probs.exp().double().numpy()
    assert sums["by_example"][:, 0].tolist() == [600, 600]
    np.testing.assert_allclose(sums["by_example"][:, 1], [300 * (p[2] + p[3]), 300 * (p[0] + p[1])], rtol=1e-12)
    assert sums["by_position"][:2, 0].tolist() == [600, 600]
    assert sums["by_tenth"][[0, 5], 3].tolist() == [300, 300]
    assert sums["by_position"][:2, 7].tolist() == [300, 300]  # contradicted
