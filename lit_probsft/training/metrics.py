"""Metrics: sums over supervised tokens and all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lit_probsft.head.loss import IGNORE_INDEX, HeadOutput
from lit_probsft.objectives import Objective, Threshold


def sources_of(datamodule: Any, split: str) -> tuple[str, ...]:
    """Names of the sources of a split; empty if there is one source, or the data module has none."""
    return tuple(datamodule.sources_of(split)) if hasattr(datamodule, "sources_of") else ()


def token_sources(batch: dict[str, Any]) -> Tensor | None:
    """(N,), the source of each supervised token in row-major order; None if the data have one source."""
    if "token_source" not in batch:
        return None
    sources: Tensor = batch["token_source"][:, 1:][batch["labels"][:, 1:] != IGNORE_INDEX]
    return sources


class TokenSums(Metric):
    """Sums over tokens and ranks, in double also within a module that is cast to bf16, which counts only to 256.

    A subclass adds its sums with `add_sum` and calls `keep_double` at the beginning of `update`.
    """

    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # fp32 counts to 2^24 tokens only, but Apple's GPUs have no double.
        self._double = torch.float32 if torch.backends.mps.is_available() else torch.float64

    def add_sum(self, name: str, *shape: int) -> None:
        """Add or replace a sum, zeros of this shape."""
        self.add_state(name, torch.zeros(shape, dtype=self._double, device=self.device), dist_reduce_fx="sum")

    def keep_double(self) -> None:
        """Undo a cast of the sums."""
        if any(state.dtype != self._double for state in self.states().values()):
            self.set_dtype(self._double)

    def states(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {name: state for name, state in self.metric_state.items() if isinstance(state, Tensor)}


class Calibration(Metric):
    """How well the model's probability of its most probable token predicts that it is right, over supervised tokens.

    `ece` (0 to 1) is the expected calibration error: tokens are sorted by the p of the most probable token into 15 bins
    of equal width; the mean over tokens of |accuracy - mean p| of their bin. `entropy` is the mean of the model's
    entropy in nats. `bins` (15, 3) are the sums behind `ece`: tokens, p, correct ones.

    The sums are integers, p and entropy in units of 2^-24. They do not depend on the order of the tokens, and a cast of
    the module does not change them.
    """

    full_state_update = False
    BINS = 15
    UNIT = 2**-24
    bins: Tensor
    entropy: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("bins", torch.zeros(self.BINS, 3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("entropy", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    @override
    def update(self, output: HeadOutput) -> None:
        """Add the tokens of a head's output, which may not include ignored ones; and its entropy, if computed."""
        top_prob = output.top_prob.nan_to_num()  # of a model with NaN in its weights, which the NLL shows
        bin = (top_prob * self.BINS).long().clamp(max=self.BINS - 1)
        units = (top_prob / self.UNIT).round().long()
        columns = torch.stack([torch.ones_like(units), units, output.correct.long()], dim=-1)
        self.bins.index_add_(0, bin, columns)
        if output.entropy is not None:
            units = (output.entropy.nan_to_num() / self.UNIT).round().long()
            self.entropy += torch.stack([torch.ones_like(units).sum(), units.sum()])

    @override
    def compute(self) -> dict[str, Tensor]:
        """`ece`, `entropy` and `bins`; the first two are NaN without tokens."""
        wide = torch.float32 if self.bins.device.type == "mps" else torch.float64
        bins = self.bins.to(wide) * torch.tensor([1, self.UNIT, 1], dtype=wide, device=self.bins.device)
        tokens, prob, correct = bins.unbind(-1)
        counted, entropy = self.entropy.to(wide)
        ece = (correct - prob).abs().sum() / tokens.sum()
        return {"ece": ece, "entropy": entropy * self.UNIT / counted, "bins": bins}


class TokenMeans(TokenSums):
    """Means over supervised tokens.

    `loss` (the objective's f), `nll` (nats), `mean_p`, `accuracy` (share of tokens with the largest logit), `inside`
    (share of tokens whose p is in the objective's interval). With several sources (`set_sources`) also `nll/SOURCE` and
    `mean_p/SOURCE`.
    """

    sums: Tensor
    """(6,), in the order of `NAMES`, then the number of tokens."""
    source_sums: Tensor
    """(sources, 3): nll, p, tokens."""

    NAMES = ("loss", "nll", "mean_p", "accuracy", "inside")

    def __init__(self, objective: Objective, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_interval(objective.interval)
        self.add_sum("sums", len(self.NAMES) + 1)
        self.set_sources(())

    def set_interval(self, interval: tuple[float, float]) -> None:
        """Let `inside` count the tokens whose p is in this closed interval."""
        self._interval = Threshold(min_prob=interval[0], max_prob=interval[1])

    def set_sources(self, sources: Sequence[str]) -> None:
        """Sum each of these sources separately; resets the metric."""
        self.sources = tuple(sources)
        self.add_sum("source_sums", len(self.sources), 3)
        self.reset()

    @override
    def update(self, output: HeadOutput, sources: Tensor | None = None) -> None:
        """Add the tokens of a head's output, which may not include ignored ones.

        Args:
            output: of N tokens.
            sources: (N,), the source of each token, counted from 0.
        """
        self.keep_double()
        per_token = (
            output.token_losses,
            -output.log_probs,
            output.log_probs.exp(),
            output.correct,
            self.inside(output),
            torch.ones_like(output.log_probs),
        )
        self.sums += torch.stack([values.to(self.sums.dtype).sum() for values in per_token])
        if sources is not None and self.sources:
            columns = torch.stack([per_token[1], per_token[2], per_token[-1]], dim=-1)
            self.source_sums.index_add_(0, sources, columns.to(self.source_sums.dtype))

    def inside(self, output: HeadOutput) -> Tensor:
        """(N,), bool: which tokens are in the objective's interval."""
        return self._interval.inside(output.log_probs)

    @override
    def compute(self) -> dict[str, Tensor]:
        """The means, NaN without tokens; a source without tokens is omitted."""
        means = dict(zip(self.NAMES, self.sums[:-1] / self.sums[-1], strict=True))
        for source, (nll, mean_p, tokens) in zip(self.sources, self.source_sums, strict=True):
            if tokens > 0:
                means |= {f"nll/{source}": nll / tokens, f"mean_p/{source}": mean_p / tokens}
        return means


class ProbHistogram(Metric):
    """A histogram of p with narrow bins of log(p / (1 - p)), the log-odds.

    In p itself, all tokens of a strong model would fall into the last bins; in log-odds .9999 and .99998 are 1.6 apart.
    Histograms of batches, ranks and files can be added. A bin is 2^-10 wide and represents its centre, so log-odds read
    from it are exact to 2^-11. Log-odds below -64 or above 64 are counted in the first or last bin.
    """

    full_state_update = False
    counts: Tensor
    """(131072,), int64."""

    EDGE = 64
    PER_UNIT = 1024

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(2 * self.EDGE * self.PER_UNIT, dtype=torch.int64), dist_reduce_fx="sum")

    @override
    def update(self, log_probs: Tensor, log_complement: Tensor | None = None) -> None:
        """Count tokens.

        Args:
            log_probs: (N,), log p in nats.
            log_complement: (N,), log(1 - p) from the mass of the other tokens (`TokenStats.log_complement`). Without it
                1 - p is computed from log p, where fp32 has few digits near p = 1.
        """
        if log_complement is None:
            log_complement = torch.log(-torch.expm1(log_probs))
        odds = (log_probs - log_complement).nan_to_num()  # NaN is no index; other metrics show it
        bins = (odds.clamp(-self.EDGE, self.EDGE) + self.EDGE) * self.PER_UNIT
        bins = bins.long().clamp_(max=len(self.counts) - 1)
        self.counts.index_add_(0, bins, torch.ones_like(bins))

    @override
    def compute(self) -> Tensor:
        """(131072,), int64: the counts of all ranks."""
        return self.counts

    @classmethod
    def centres(cls) -> Tensor:
        """(131072,), fp64: the log-odds at the centre of each bin."""
        bins = torch.arange(2 * cls.EDGE * cls.PER_UNIT, dtype=torch.float64)
        return (bins + 0.5) / cls.PER_UNIT - cls.EDGE


def quantiles(counts: Tensor, shares: Sequence[float]) -> list[float]:
    """Quantiles of a `ProbHistogram` in log-odds; NaN without tokens.

    The q-quantile of n tokens is the ceil(q n)-th smallest of them (the first for q = 0).
    """
    summed = counts.cpu().cumsum(0)
    total = int(summed[-1])
    if not total:
        return [math.nan] * len(shares)
    # Rounded before the ceiling: .3 x 10 is a little above 3 in binary.
    ranks = [min(max(math.ceil(round(share * total, 6)), 1), total) for share in shares]
    bins = torch.searchsorted(summed, torch.tensor(ranks))
    return [float(value) for value in ProbHistogram.centres()[bins]]


def share_above(counts: Tensor, p: float) -> float:
    """The share of the tokens of a `ProbHistogram` with a p above this one, to within a bin; NaN without tokens."""
    counts = counts.cpu()
    total, edge = int(counts.sum()), math.log(p / (1 - p))
    return float(counts[ProbHistogram.centres() > edge].sum()) / total if total else math.nan
