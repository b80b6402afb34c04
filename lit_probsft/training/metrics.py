"""What is measured beside the objective, as sums over supervised tokens and all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_probsft.head.loss import HeadOutput
from lit_probsft.objectives import Objective, Threshold


class Calibration(Metric):
    """How far the model's belief in its most probable token is to be trusted, over supervised tokens.

    `ece` (0 to 1) is the expected calibration error: tokens are sorted by the p of the most probable token into 15 bins
    of equal width; the mean over tokens of |share that was right - mean p| of their bin. `entropy` is the mean of the
    model's entropy in nats. `bins` (15, 3) are the sums behind the former: tokens, p, right ones.

    The sums are integers, p and entropy in units of 2^-24: they are the same in whatever order tokens come, and no cast
    of the module touches them.
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

    def update(self, output: HeadOutput) -> None:
        """Add the tokens of a head's output, none of which may be ignored; entropy where the head was asked for it."""
        place = (output.top_prob * self.BINS).long().clamp(max=self.BINS - 1)
        units = (output.top_prob / self.UNIT).round().long()
        columns = torch.stack([torch.ones_like(units), units, output.correct.long()], dim=-1)
        self.bins.index_add_(0, place, columns)
        if output.entropy is not None:
            units = (output.entropy / self.UNIT).round().long()
            self.entropy += torch.stack([torch.ones_like(units).sum(), units.sum()])

    def compute(self) -> dict[str, Tensor]:
        """`ece`, `entropy` and `bins`; the first two NaN before the first token."""
        wide = torch.float32 if self.bins.device.type == "mps" else torch.float64
        bins = self.bins.to(wide) * torch.tensor([1, self.UNIT, 1], dtype=wide, device=self.bins.device)
        tokens, prob, right = bins.unbind(-1)
        counted, entropy = self.entropy.to(wide)
        ece = (right - prob).abs().sum() / tokens.sum()
        return {"ece": ece, "entropy": entropy * self.UNIT / counted, "bins": bins}


class TokenMeans(Metric):
    """Means over supervised tokens: `loss` (the objective's f), `nll` (nats), `mean_p`, `accuracy` (share of tokens
    with the largest logit), `inside` (share of tokens whose p lies in the objective's interval). Where the data have
    several sources (see `tell_apart`) also `nll/SOURCE` and `mean_p/SOURCE`.
    """

    full_state_update = False
    sums: Tensor
    of_sources: Tensor

    NAMES = ("loss", "nll", "mean_p", "accuracy", "inside")

    def __init__(self, objective: Objective, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.watch(objective.interval)
        # fp32 stops counting at 2^24 tokens, but Apple's GPUs have nothing wider.
        self._wide = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.sources: tuple[str, ...] = ()
        self.add_state("sums", torch.zeros(len(self.NAMES) + 1, dtype=self._wide), dist_reduce_fx="sum")
        self.add_state("of_sources", torch.zeros(0, 3, dtype=self._wide), dist_reduce_fx="sum")

    def watch(self, interval: tuple[float, float]) -> None:
        """From now on `inside` counts the tokens whose p lies in this closed interval."""
        self._interval = Threshold(min_prob=interval[0], max_prob=interval[1])

    def tell_apart(self, sources: Sequence[str]) -> None:
        """From now on keep the sums of these sources apart; forgets what was added so far."""
        self.sources = tuple(sources)
        self._defaults["of_sources"] = torch.zeros(len(self.sources), 3, dtype=self._wide)
        self.reset()

    def _apply(self, fn: Any, exclude_state: Any = ()) -> Any:
        # A module that is cast to bf16 would take the sums along, and bf16 counts to 256.
        applied = super()._apply(fn, exclude_state)
        for name in ("sums", "of_sources"):
            state = getattr(self, name).to(self._wide)
            setattr(self, name, state)
            self._defaults[name] = torch.zeros_like(state)
        return applied

    def update(self, output: HeadOutput, sources: Tensor | None = None) -> None:
        """Add the tokens of a head's output, none of which may be ignored.

        Args:
            output: of N tokens.
            sources: (N,) which source each token is of, counted from 0.
        """
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
            self.of_sources.index_add_(0, sources, columns.to(self.of_sources.dtype))

    def inside(self, output: HeadOutput) -> Tensor:
        """(N,), bool: which tokens lie in the objective's interval."""
        return self._interval.inside(output.log_probs)

    @property
    def tokens(self) -> Tensor:
        """Number of tokens on this rank, or on all of them while synchronized."""
        return self.sums[-1]

    def compute(self) -> dict[str, Tensor]:
        """The means, NaN before the first token; a source that had none is left out."""
        means = dict(zip(self.NAMES, self.sums[:-1] / self.sums[-1], strict=True))
        for source, (nll, mean_p, tokens) in zip(self.sources, self.of_sources, strict=True):
            if tokens > 0:
                means |= {f"nll/{source}": nll / tokens, f"mean_p/{source}": mean_p / tokens}
        return means


class Evaluation(nn.Module):
    """What is measured of one set of rows.

    Args:
        objective: whose loss and interval count.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.means = TokenMeans(objective)
        self.calibration = Calibration()

    def update(self, output: HeadOutput, sources: Tensor | None = None) -> None:
        """Add the tokens of a head's output, as `TokenMeans.update`."""
        self.means.update(output, sources)
        self.calibration.update(output)

    def take(self) -> dict[str, Tensor]:
        """What `TokenMeans` and `Calibration` compute, over all ranks; forgets it."""
        found = self.means.compute() | self.calibration.compute()
        self.means.reset()
        self.calibration.reset()
        return found


class ProbHistogram(Metric):
    """How often each p was seen, counted in narrow bins of log(p / (1 - p)), the log-odds.

    In p itself a strong model's tokens would all fall into the last bins; in log-odds .9999 and .99998 are 1.6 apart.
    Histograms add up: over batches, over ranks, over files. A bin is 2^-10 wide and stands for its centre, so that
    log-odds read from it are right to 2^-11. Beyond -64 and 64 they are counted in the last bin of that side.
    """

    full_state_update = False
    counts: Tensor
    """(131072,), int64."""

    EDGE = 64
    PER_UNIT = 1024

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(2 * self.EDGE * self.PER_UNIT, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_probs: Tensor, log_complement: Tensor | None = None) -> None:
        """Count tokens.

        Args:
            log_probs: (N,), log p in nats.
            log_complement: (N,), log(1 - p) from the mass of the other tokens (`TokenStats.log_complement`). Without it
                1 - p is taken from log p, which tells apart only what fp32 does near 0.
        """
        if log_complement is None:
            log_complement = torch.log(-torch.expm1(log_probs))
        bins = ((log_probs - log_complement).clamp(-self.EDGE, self.EDGE) + self.EDGE) * self.PER_UNIT
        bins = bins.long().clamp_(max=len(self.counts) - 1)
        self.counts.index_add_(0, bins, torch.ones_like(bins))

    def compute(self) -> Tensor:
        """(131072,), int64: the counts of all ranks."""
        return self.counts

    @classmethod
    def centres(cls) -> Tensor:
        """(131072,), fp64: the log-odds that each bin stands for."""
        bins = torch.arange(2 * cls.EDGE * cls.PER_UNIT, dtype=torch.float64)
        return (bins + 0.5) / cls.PER_UNIT - cls.EDGE


def quantiles(counts: Tensor, shares: Sequence[float]) -> list[float]:
    """Log-odds below or at which these shares of the tokens of a `ProbHistogram` lie; NaN without tokens.

    The q-quantile of n tokens is the ceil(q n)-th smallest of them (the first for q = 0).
    """
    summed = counts.cpu().cumsum(0)
    total = int(summed[-1])
    if not total:
        return [math.nan] * len(shares)
    # Rounded before the ceiling: .3 x 10 is a little above 3 in binary.
    ranks = [min(max(math.ceil(round(share * total, 6)), 1), total) for share in shares]
    places = torch.searchsorted(summed, torch.tensor(ranks))
    return [float(value) for value in ProbHistogram.centres()[places]]


def share_above(counts: Tensor, p: float) -> float:
    """The share of the tokens of a `ProbHistogram` whose probability is above `p`, to within a bin; NaN without
    tokens."""
    counts = counts.cpu()
    total, edge = int(counts.sum()), math.log(p / (1 - p))
    return float(counts[ProbHistogram.centres() > edge].sum()) / total if total else math.nan
