"""The audit estimates each part of a mixture alone, and says what its estimate cannot see."""

import numpy as np
import pytest

from lit_probsft.analysis.audit import Audit
from lit_probsft.analysis.survey import STATISTICS
from tests.analysis.test_noise import draw


def audit(*parts, tokens=20):
    """Of a mixture of these rows, whose parts alternate."""
    names = {"accuracy": "mean_prob"}
    values = {k: np.concatenate([vars(part)[names.get(k, k)] for part in parts]) for k in STATISTICS}
    examples = tokens * np.stack([np.ones(len(values["nll"])), *values.values()], -1)
    sources = np.repeat(np.arange(len(parts)), [len(part.tokens) for part in parts])
    order = np.random.default_rng(0).permutation(len(sources))
    documents = _Documents(sources[order] if len(parts) > 1 else None, len(order))
    return Audit({"by_example": examples[order]}, documents, str), order


class _Documents:
    def __init__(self, sources, count):
        self.sources, self.count = sources, count

    def __len__(self):
        return self.count


EASY, HARD = draw(60, surprise=1.0)[0], draw(60, share=0.0, style=3.0, ignorant=0.08, seed=1)[0]
UNKNOWN = draw(60, share=0.0, ignorant=0.9)[0]


def test_wrong_rows_of_a_mixture_are_those_of_its_parts():
    found, order = audit(EASY, HARD)
    assert sorted(order[found.wrong]) == list(range(18))  # 30 % of the easy part
    assert found.result(lambda index: {"row": index}, 10)["wrong_rows"] == 18
    assert found.beliefs(0.5).wrong == 18
    assert set(found.order[:18]) == set(found.wrong)


@pytest.mark.parametrize(
    ("parts", "tokens", "said"),
    [
        ((EASY,), 20, ["whole wrong answers and refusals", "An easy and a hard task", "mostly have contradicted"]),
        ((EASY,), 80, ["whole wrong answers and refusals", "An easy and a hard task", "(median 80 supervised tokens)"]),
        ((EASY, UNKNOWN), 80, ["whole wrong", "An easy and a hard", "the share is a lower bound", "median 80"]),
        ((UNKNOWN,), 20, ["at least 10 rows of one task that the model knows"]),
    ],
)
def test_the_limits_of_the_estimate_are_said(parts, tokens, said):
    found = audit(*parts, tokens=tokens)[0].limits()
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True))
