"""What an objective may read about supervised tokens."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from torch import Tensor


class Capability(Protocol):
    """What an objective reads about the model before training (`lit_probsft.training.fitting.Capability`)."""

    @property
    def mean_prob(self) -> float:
        """Mean p over the training tokens."""

    def prob_at(self, permille: int) -> float:
        """The quantile of p at `permille` / 1000."""


@dataclasses.dataclass(frozen=True)
class TokenStats:
    """Statistics of N supervised tokens over a vocabulary of size V.

    `log_probs` is always present. The other fields are present if the objective names them in `needs`: each costs a
    pass over the vocabulary or must come from the caller. Only `log_probs` carries a gradient. If the objective needs
    `logits`, they carry the gradient instead, and `log_probs` is a function of them.
    """

    log_probs: Tensor
    """(N,), log p of the target tokens in nats, at most 0; fp32 from the head."""
    entropy: Tensor | None = None
    """(N,), entropy of the model's distribution in nats, 0 to log V; no gradient."""
    collision: Tensor | None = None
    """(N,), sum of p squared over the vocabulary, 1/V to 1; no gradient."""
    log_complement: Tensor | None = None
    """(N,), log(1 - p) in nats, summed over the other tokens and thus exact where p rounds to 1; no gradient."""
    top_entropy: Tensor | None = None
    """(N,), entropy in nats of the `top_k` most probable tokens, renormalized, 0 to log k; no gradient."""
    top_token: Tensor | None = None
    """(N,), int64: id of the most probable token; no gradient."""
    logits: Tensor | None = None
    """(N, V), logits after scale and soft cap; they carry the gradient."""
    labels: Tensor | None = None
    """(N,), ids of the target tokens; present together with `logits`."""
    progress: float | None = None
    """Share of the training that is done, 0 to 1."""
    batch_mean_p: float | None = None
    """Mean p over the supervised tokens of the previous optimizer step, on all ranks; 0 before the first step."""
    batch_nll: float | None = None
    """Mean NLL over the same tokens, in nats; 0 before the first step."""
    capability: Capability | None = None
    """p of the training tokens before training."""
    running_mean_p: float | None = None
    """Running mean of p over the optimizer steps so far; starts at the capability's mean."""
    reference_log_probs: Tensor | None = None
    """(N,), log p of the target tokens under a frozen model, by default the model before training; no gradient."""
    reference_logits: Tensor | None = None
    """(N, V), logits of that model; no gradient."""
    frozen_log_probs: Tensor | None = None
    """(N,), the value of `detached_log_probs` where a numerical derivative must hold it fixed."""
    frozen_logits: Tensor | None = None
    """(N, V), the same for `detached_logits`."""

    def detached_log_probs(self) -> Tensor:
        """(N,), log p as a constant. Objectives stop gradients with this and not with `detach`."""
        return self.log_probs.detach() if self.frozen_log_probs is None else self.frozen_log_probs

    def detached_logits(self) -> Tensor:
        """(N, V), the logits as a constant, for objectives that need logits."""
        assert self.logits is not None
        return self.logits.detach() if self.frozen_logits is None else self.frozen_logits

    def replace(self, **changes: Any) -> TokenStats:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


STATISTICS = frozenset({"entropy", "collision", "log_complement", "top_entropy", "top_token"})
"""Fields that the head computes from a chunk's distribution, without a gradient."""

HANDED_IN = frozenset({"progress", "batch_mean_p", "batch_nll", "capability", "running_mean_p"})
"""Fields that the caller passes to the head in `context`."""

REFERENCE = frozenset({"reference_log_probs", "reference_logits"})
"""Fields that the head computes from a second, frozen model."""

NEEDS = STATISTICS | HANDED_IN | REFERENCE | {"logits"}
"""Every name that `Objective.needs` may contain."""
