"""Which training rows the model contradicts: wrong labels, or gaps in what the model knows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_probsft.analysis.advice import Beliefs
from lit_probsft.analysis.noise import ENOUGH_FOR_SHARE, NoiseEstimate, RowStatistics, combine, estimate_noise
from lit_probsft.analysis.survey import STATISTICS
from lit_probsft.data.batches.store import Documents

_LONG = 60
"""From this median number of supervised tokens on, whole wrong answers may be missed: later tokens of an answer follow
from its first ones, whatever the question."""

_SHOWN = 40, 12
"""Tokens that are shown before the first contradiction of a row, and of the label from there on."""


@dataclasses.dataclass(frozen=True)
class Audit:
    """The rows in the order in which their labels should be checked.

    Args:
        sums: sums of `Survey`.
        documents: the measured documents.
        decode: the text of token ids.
    """

    sums: Mapping[str, NDArray[np.float64]]
    documents: Documents
    decode: Callable[[Sequence[int]], str]

    @cached_property
    def per_row(self) -> dict[str, NDArray[np.float64]]:
        """(R,) each: the number of `tokens`, and the means `STATISTICS`, NaN for a row without tokens."""
        examples = self.sums["by_example"]
        with np.errstate(invalid="ignore"):
            means = (examples[:, 1:] / examples[:, :1]).T
        return {"tokens": examples[:, 0], **dict(zip(STATISTICS, means, strict=True))}

    @cached_property
    def parts(self) -> dict[int, NDArray[np.int64]]:
        """Indices of the rows of each part of a mixture that has any, by its number. Rows of one source are part 0."""
        sources = self.documents.sources
        if sources is None:
            return {0: np.arange(len(self.documents))}
        return {int(number): np.flatnonzero(sources == number) for number in np.unique(sources)}

    @cached_property
    def estimates(self) -> dict[int, NoiseEstimate]:
        """The estimated share of wrong rows in each of `parts`."""
        names = [field.name for field in dataclasses.fields(RowStatistics)]
        return {
            number: estimate_noise(RowStatistics(**{name: self.per_row[name][part] for name in names}))
            for number, part in self.parts.items()
        }

    @cached_property
    def estimate(self) -> NoiseEstimate:
        """The estimated share of wrong rows."""
        return combine(list(self.estimates.values()), list(self.parts.values()))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(R,), all rows, the ones that are most likely wrong first, those without a score last."""
        return np.argsort(-np.nan_to_num(self.estimate.scores, nan=-np.inf), kind="stable")

    @cached_property
    def wrong(self) -> NDArray[np.int64]:
        """The rows that are counted as wrong, the most likely ones first."""
        return self.order[self.estimate.scores[self.order] > 0]

    def beliefs(self, share_above: float) -> Beliefs:
        """What the advice is based on; `share_above` is the share of tokens with p above .55."""
        examples = self.sums["by_example"]
        whole = self._means(examples)
        rest = self._means(np.delete(examples, self.wrong, axis=0))
        return Beliefs(
            whole["mean_prob"],
            share_above,
            whole["confidence"],
            whole["ignorant"],
            whole["contradicted"],
            int((examples[:, 0] > 0).sum()),
            len(self.wrong),
            rest["mean_prob"],
            rest["confidence"],
        )

    def result(self, describe: Callable[[int], dict[str, Any]], most: int) -> dict[str, Any]:
        """The entry `noise` of capability.json: the estimate, and the rows that are contradicted most.

        Args:
            describe: describes a row by its index.
            most: number of rows at most.
        """
        share, contradicted = self.estimate.share, self.sums["by_example"][:, 1 + STATISTICS.index("contradicted")] > 0
        used = int((self.per_row["tokens"] > 0).sum())
        return {
            "share_of_rows": None if math.isnan(share) else share,
            "interval": self.estimate.interval,
            "wrong_rows": None if math.isnan(share) else len(self.wrong),
            "contradicted_rows": int(contradicted.sum()),
            "share_of_contradicted_rows": float(contradicted.sum()) / used if used else None,
            "limits": self.limits(),
            "rows": [describe(index) for index in self.order.tolist() if contradicted[index]][:most],
        }

    def limits(self) -> list[str]:
        """What the estimate cannot see, in sentences."""
        if math.isnan(self.estimate.share):
            few = "of one task" if len(self.parts) == 1 else "of a part of the mixture"
            return [
                f"An estimate needs at least {ENOUGH_FOR_SHARE} rows {few} that the model knows and mostly agrees with."
            ]
        found = [
            "This counts whole wrong answers and refusals where the model knows the task. It misses slips within long "
            "answers, and cannot judge rows that the model does not know."
        ]
        if len(self.wrong):
            found.append("An easy and a hard task in one source look like noise: make each a part of a mixture.")
        if any(math.isnan(estimate.share) for estimate in self.estimates.values()):
            found.append("Some parts of the mixture cannot be estimated, so the share is a lower bound.")
        right = np.delete(self.per_row["tokens"], self.wrong)
        contradicted = np.delete(self.per_row["contradicted"], self.wrong) > 0
        if (length := float(np.median(right[right > 0]))) >= _LONG:
            found.append(
                f"In rows this long (median {length:.0f} supervised tokens) it can also miss whole wrong answers: the "
                "true share can be outside the interval."
            )
        elif contradicted.sum() > (right > 0).sum() / 2:
            found.append(
                "The other rows mostly have contradicted tokens too: the true share can be outside the interval."
            )
        return found

    def texts(self, index: int) -> dict[str, str]:
        """The first contradiction of a row: the text `before` it, the `label` from there on, the `model`'s token
        instead; empty without one."""
        position, token = (int(value) for value in self.sums["first"][index])
        if not position:
            return dict.fromkeys(("before", "label", "model"), "")
        ids, labels = self.documents[index]
        at = int(np.flatnonzero(labels[1:] >= 0)[position - 1]) + 1
        parts = {
            "before": ids[max(at - _SHOWN[0], 0) : at],
            "label": ids[at : at + _SHOWN[1]],
            "model": np.array([token]),
        }
        return {name: self.decode(part.tolist()) for name, part in parts.items()}

    @staticmethod
    def _means(examples: NDArray[np.float64]) -> dict[str, float]:
        total = examples.sum(0)
        with np.errstate(invalid="ignore"):
            return dict(zip(STATISTICS, (total[1:] / total[0]).tolist(), strict=True))
