"""The results of `capability`: the content of its files and its summary, from the sums of a survey."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_probsft.analysis.advice import EXAMPLES, PAPER, Command, advise, check_sample, compare, level, warnings
from lit_probsft.analysis.audit import Audit
from lit_probsft.analysis.noise import NoiseEstimate
from lit_probsft.analysis.survey import FEWEST_ROWS, clustered_interval, means
from lit_probsft.data.batches.store import Documents
from lit_probsft.objectives import Objective
from lit_probsft.training.fitting import Capability
from lit_probsft.training.metrics import ProbHistogram, share_above

QUANTILES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_LISTED = 10
"""Number of examples with the smallest and the largest mean p, and of those contradicted most, in the JSON. The CSV has
all examples."""


@dataclass(frozen=True)
class Findings:
    """What a probe measured, and on which documents.

    Attributes:
        sums: sums of `Survey`.
        counts: counts of `ProbHistogram`.
        calibration: values of `Calibration`.
        documents: the measured documents.
        total: number of documents that the sample was drawn from; None for a stream.
        streaming: whether the documents are the first rows of a stream.
        sources: names of the parts of a mixture.
        locate: maps a row of the mixture to the row of its part.
        decode: the text of token ids.
    """

    sums: Mapping[str, NDArray[np.float64]]
    counts: Tensor
    calibration: Mapping[str, Tensor]
    documents: Documents
    total: int | None
    streaming: bool
    sources: Sequence[str]
    locate: Callable[[int], int]
    decode: Callable[[Sequence[int]], str]

    @cached_property
    def audit(self) -> Audit:
        """The rows that the model contradicts."""
        return Audit(self.sums, self.documents, self.decode)

    def result(self, chosen: Objective, command: Command) -> dict[str, Any]:
        """The content of capability.json, except for the description of the run.

        Args:
            chosen: the configuration's objective.
            command: the user's command, from which the advice builds commands.
        """
        examples = self.sums["by_example"]
        rows = len(examples)
        total = means(examples.sum(0, keepdims=True))[0]
        mean = float(total.pop("mean_prob") or 0)
        interval = clustered_interval(examples[:, 0], examples[:, 1])
        capability = Capability.of(mean, self.counts)
        above = share_above(self.counts, 0.55)
        compared = compare(chosen.fitted(capability), self.counts)
        return {
            "mean_prob": mean,
            "interval": interval,
            "level": level(mean),
            "advice": {**advise(self.audit.beliefs(above), command), "warnings": warnings(compared)},
            "sample": {
                "rows": rows,
                "of": self.total,
                "drawn": "the first" if self.streaming else "at random" if rows != self.total else "all",
                **check_sample(mean, interval, rows),
            },
            "rows": rows,
            **total,
            "share_above_0.55": above,
            "noise": self.audit.result(lambda index: {**self._example(index), **self.audit.texts(index)}, _LISTED),
            "quantiles": {str(q): _of_odds(capability.log_odds[round(1000 * q) - 1]) for q in QUANTILES},
            "calibration": {
                "error": float(self.calibration["ece"]),
                "bins": [b for b in means(self.calibration["bins"].numpy(), ("confidence", "accuracy")) if b["tokens"]],
            },
            "by_source": self._by_source(),
            "by_position": [
                {"from": 2**k - 1, "to": 2 ** (k + 1) - 2, **entry}
                for k, entry in enumerate(means(self.sums["by_position"]))
                if entry["tokens"]
            ],
            "by_tenth": means(self.sums["by_tenth"]),
            "by_example": self._by_example(),
            "objectives": compared,
            "paper": PAPER,
            "permilles": list(capability.log_odds),
        }

    def in_bins(self) -> list[tuple[float, int]]:
        """A coarse histogram in log-odds: the center and the number of tokens of bins that are 1/4 wide."""
        coarse = self.counts.reshape(-1, ProbHistogram.PER_UNIT // 4).sum(-1).tolist()
        return [(-ProbHistogram.EDGE + (index + 0.5) / 4, count) for index, count in enumerate(coarse)]

    def table(self) -> str:
        """All examples as CSV, the ones that are most likely wrong first."""
        text = io.StringIO()
        found = [{**self._example(index), **self.audit.texts(index)} for index in self.audit.order.tolist()]
        writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        return text.getvalue()

    def _by_source(self) -> dict[str, Any]:
        found = {}
        for number, name in enumerate(self.sources):
            nothing = NoiseEstimate(math.nan, None, np.empty(0))
            part, estimate = self.audit.parts.get(number, np.arange(0)), self.audit.estimates.get(number, nothing)
            chosen = self.sums["by_example"][part]
            (entry,) = means(chosen.sum(0, keepdims=True))
            interval = clustered_interval(chosen[:, 0], chosen[:, 1])
            known = not math.isnan(estimate.share)
            found[name] = {
                "rows": len(chosen),
                **entry,
                "interval": interval,
                "wrong_rows": int(np.isin(part, self.audit.wrong).sum()) if known else None,
                "share_of_wrong_rows": estimate.share if known else None,
                "interval_of_wrong_rows": estimate.interval if known else None,
            }
        return found

    def _by_example(self) -> dict[str, Any]:
        examples = self.sums["by_example"]
        used = np.flatnonzero(examples[:, 0])
        mean = examples[used, 1] / examples[used, 0]
        order = used[np.argsort(mean, kind="stable")].tolist()
        return {
            "quantiles_of_mean_prob": {str(q): float(np.quantile(mean, q)) for q in QUANTILES},
            "lowest": [self._example(index) for index in order[:_LISTED]],
            "highest": [self._example(index) for index in order[: -_LISTED - 1 : -1]],
        }

    def _example(self, index: int) -> dict[str, Any]:
        row, source = int(self.documents.rows[index]), {}
        if self.documents.sources is not None:
            source = {"source": self.sources[int(self.documents.sources[index])]}
            row = row if self.streaming else self.locate(row)
        (entry,) = means(self.sums["by_example"][index : index + 1])
        score = float(self.audit.estimate.scores[index])
        return {"row": row, **source, **entry, "noise": None if math.isnan(score) else score}


def _of_odds(odds: float) -> dict[str, float]:
    """Log-odds of at most 64 in size, as p and as 1 - p, each with all its digits."""
    return {"prob": 1 / (1 + math.exp(-odds)), "one_minus_prob": 1 / (1 + math.exp(odds)), "log_odds": odds}


def in_words(result: dict[str, Any]) -> list[str]:
    """The summary that `capability` prints."""
    sample, interval = result["sample"], result["interval"]
    band = (
        f"no interval below {FEWEST_ROWS} rows"
        if interval is None
        else f"95% interval {interval[0]:.4f} to {interval[1]:.4f}"
    )
    part = f"{result['rows']} rows" + (f" of {sample['of']}" if sample["drawn"] == "at random" else "")
    quantiles = {q: result["quantiles"][q] for q in ("0.1", "0.5", "0.9")}
    shown = ", ".join(
        f"{q}: {v['prob']:.4g}" if v["prob"] < 0.99 else f"{q}: 1 - {v['one_minus_prob']:.2g}"
        for q, v in quantiles.items()
    )
    lines = [
        "",
        f"mean p   {result['mean_prob']:.4f}, {band}; {part}, {result['tokens']} tokens; level: {result['level']}",
        f"         nll {result['nll']:.3f} nats, accuracy {result['accuracy']:.3f}, entropy {result['entropy']:.3f} "
        f"nats, calibration error {result['calibration']['error']:.3f}",
        f"belief   confidence {result['confidence']:.3f} (mean p of the most probable token); of the tokens, "
        f"{result['ignorant']:.1%} ignorant (no token has p of .3 or more),",
        f"         {result['contradicted']:.1%} contradicted (p of the label below .1, of another token above .7)",
        *_noise_in_words(result),
        f"p        quantiles {shown}; {result['share_above_0.55']:.1%} above .55",
        "paper    mean p " + ", ".join(f"{k} {low:.2f} to {high:.2f}" for k, (low, high) in PAPER["mean_prob"].items()),
    ]
    if interval is None:
        lines.append(f"sample   too small: measure at least {FEWEST_ROWS} rows")
    elif not sample["enough"]:
        more = f"; about {sample['rows_needed']} rows would be enough" if sample["rows_needed"] else ""
        lines.append(f"sample   too small: the interval reaches another level{more}")
    else:
        lines.append("sample   large enough: the interval is within one level")
    advice = result["advice"]
    lines += [f"advice   {advice['objective'] or 'no single objective; run the pilots'}. {advice['reason']}"]
    lines += [f"         {command}" for command in advice["commands"]]
    return lines + [f"warning  {text}" for text in advice["warnings"]]


def _noise_in_words(result: dict[str, Any]) -> list[str]:
    """The lines about wrong rows: their share, what the estimate cannot see, the share of each part of a mixture."""
    noise = result["noise"]
    look = f". Check the first rows of {EXAMPLES}" if noise["wrong_rows"] or noise["contradicted_rows"] else ""
    share = _share_in_words(noise["wrong_rows"], result["rows"], noise["share_of_rows"], noise["interval"])
    lines = [
        f"noise    rows that seem wrong: {share}; rows with a contradicted token: {noise['contradicted_rows']}{look}",
        *(f"         {text}" for text in noise["limits"]),
    ]
    for name, part in result["by_source"].items():
        values = (part[key] for key in ("wrong_rows", "rows", "share_of_wrong_rows", "interval_of_wrong_rows"))
        lines.append(f"         {name}: {_share_in_words(*values)}")
    return lines


def _share_in_words(wrong: int | None, rows: int, share: float | None, interval: tuple[float, float] | None) -> str:
    if share is None:
        return "cannot be estimated"
    around = "" if interval is None else f", 95% interval {interval[0]:.0%} to {interval[1]:.0%}"
    return f"about {wrong} of {rows} ({share:.0%}{around})"
