"""What an objective is: one elementwise function of what the model says about a token, and all that follows from it."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_probsft.errors import UserError

# Dyadic panels towards p = 0: the last one begins at 2^-40, where a power law has long shown itself.
_PANELS = 40
_NODES = 24


class Capability(Protocol):
    """What an objective reads of the model before training (see `lit_probsft.training.fitting`)."""

    @property
    def mean_prob(self) -> float:
        """Mean p over the training tokens."""

    def prob_at(self, permille: int) -> float:
        """Their quantile at `permille` / 1000."""


@dataclasses.dataclass(frozen=True)
class TokenStats:
    """What an objective may read about N supervised tokens.

    Only `log_probs` is always there. The others are computed when an objective names them in `needs`, because each
    costs a pass over the vocabulary or must be handed in. `log_probs` is the only field with a gradient, except where
    `logits` are asked for: then `logits` carry it, and `log_probs` are a function of them.
    """

    log_probs: Tensor
    """(N,), log p of the target tokens in nats, at most 0; fp32 from the head."""
    entropy: Tensor | None = None
    """(N,), entropy of the model's distribution in nats, 0 to log V; no gradient."""
    collision: Tensor | None = None
    """(N,), sum over the vocabulary of p squared, 1/V to 1; no gradient."""
    log_complement: Tensor | None = None
    """(N,), log(1 - p) in nats, summed from the mass of the other tokens, hence exact where p rounds to 1; no
    gradient."""
    top_entropy: Tensor | None = None
    """(N,), entropy in nats of the objective's `top_k` most probable tokens among themselves, 0 to log k; no
    gradient."""
    logits: Tensor | None = None
    """(N, V), the logits of a chunk of tokens, after scale and soft cap; carries the gradient when it is there."""
    labels: Tensor | None = None
    """(N,), the target tokens' ids; comes with `logits`."""
    progress: float | None = None
    """Share of the training that is done, 0 to 1."""
    batch_mean_p: float | None = None
    """Mean p over the supervised tokens of the previous optimizer step, on all ranks; 0 before the first one."""
    batch_nll: float | None = None
    """Mean NLL over the same tokens, in nats; 0 before the first step."""
    capability: Capability | None = None
    """What the model made of the training tokens before it was trained on them."""
    running_mean_p: float | None = None
    """Running mean of p over the optimizer steps so far, from the capability's mean on."""
    reference_log_probs: Tensor | None = None
    """(N,), log p of the target tokens under a frozen model, by default the one that training began with; no
    gradient."""
    reference_logits: Tensor | None = None
    """(N, V), that model's logits; no gradient."""
    frozen_log_probs: Tensor | None = None
    """(N,), stands for the stop-gradient of `log_probs` where a numerical derivative has to hold it fixed."""
    frozen_logits: Tensor | None = None
    """(N, V), the same for `logits`."""

    def detached_log_probs(self) -> Tensor:
        """(N,), log p as a constant: the only way an objective should stop a gradient."""
        return self.log_probs.detach() if self.frozen_log_probs is None else self.frozen_log_probs

    def detached_logits(self) -> Tensor:
        """(N, V), the logits as a constant, where the objective asks for logits."""
        assert self.logits is not None
        return self.logits.detach() if self.frozen_logits is None else self.frozen_logits

    def replace(self, **changes: Any) -> TokenStats:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


STATISTICS = frozenset({"entropy", "collision", "log_complement", "top_entropy"})
"""What the head computes from a chunk's distribution on request, without a gradient."""

HANDED_IN = frozenset({"progress", "batch_mean_p", "batch_nll", "capability", "running_mean_p"})
"""What only the caller of the head can know; it comes through `context`."""

REFERENCE = frozenset({"reference_log_probs", "reference_logits"})
"""What a second, frozen model says about the same tokens; the module holds it, the head multiplies it out."""

NEEDS = STATISTICS | HANDED_IN | REFERENCE | {"logits"}
"""Every name that `Objective.needs` may hold."""


class Objective(ABC):
    """A loss f(p) of a supervised token, p the probability that the model gives to it.

    A member is a frozen dataclass whose fields are its hyper-parameters, and its class is its name: nothing is
    registered. It says what one token costs; masking, weighting, dividing and summing belong to the head. To add one:

        @dataclasses.dataclass(frozen=True)
        class SquaredGap(Objective):
            def loss(self, tokens):
                return (1 - tokens.log_probs.exp()).square()

    Loss and derivative should be finite for every log p from -10000 to 0: (1 - p)^gamma with gamma below 1, say, has an
    infinite slope at p = 1.
    """

    @property
    def signed(self) -> bool:
        """True where `gradient_weight` may be negative, that is where a token can be pushed down."""
        return False

    @property
    def needs(self) -> frozenset[str]:
        """Names of the `TokenStats` fields that `loss` reads beside `log_probs`; a wrapper answers for its base too."""
        return frozenset()

    @property
    def top_k(self) -> int:
        """How many of the most probable tokens `top_entropy` is taken over; a wrapper answers for its base."""
        return 20

    @property
    def interval(self) -> tuple[float, float]:
        """The closed interval of p outside which a token has neither loss nor gradient; (0, 1) means every token
        counts."""
        return (0.0, 1.0)

    def fitted(self, capability: Capability) -> Objective:
        """This objective with the numbers in it that it takes from the capability; a wrapper fits its base too."""
        return self

    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
        """Numbers that change or were measured, such as alpha, to be logged of each step by their names.

        Args:
            tokens: only what is handed in is there.
        """
        return {}

    @abstractmethod
    def loss(self, tokens: TokenStats) -> Tensor:
        """The loss of each token, (N,), in the dtype of `tokens.log_probs`: no mask, no reduction, no state."""

    def gradient_weight(self, tokens: TokenStats | Tensor) -> Tensor:
        """W = -dL/dz_y, the pull on the target's logit, (N,), detached.

        W(p) = -f'(p) p (1 - p) for an f of p alone (arXiv 2510.00526, section 3). Taken from `loss` by autograd,
        through log p (d log p / dz_y = 1 - p) or, for a member that needs the logits, through them.

        Args:
            tokens: token statistics, or just log p, (N,), in nats.
        """
        stats = tokens if isinstance(tokens, TokenStats) else TokenStats(log_probs=tokens)
        missing = sorted(name for name in self.needs if getattr(stats, name) is None)
        if missing:
            raise ValueError(f"{type(self).__name__}.gradient_weight needs TokenStats with {', '.join(missing)}")
        with torch.enable_grad():
            if "logits" in self.needs:
                assert stats.logits is not None
                assert stats.labels is not None
                logits = stats.logits.detach().requires_grad_()
                target = stats.labels.unsqueeze(-1)
                log_probs = logits.log_softmax(-1).gather(-1, target).squeeze(-1)
                loss = self.loss(stats.replace(logits=logits, log_probs=log_probs))
                (gradient,) = torch.autograd.grad(loss.sum(), logits)
                return -gradient.gather(-1, target).squeeze(-1)
            log_probs = stats.log_probs.detach().requires_grad_()
            slope = derivative(self.loss(stats.replace(log_probs=log_probs)), log_probs)
        complement = -torch.expm1(stats.log_probs) if stats.log_complement is None else stats.log_complement.exp()
        return -slope * complement.to(slope.dtype)

    def lean(self, tau: float = 0.5) -> float:
        """The share of the weight's mass that lies above p = tau: integral of W from tau to 1 over the integral from 0
        to 1.

        At least half is prior-leaning (the objective works on what the model already believes), below is prior-averse.
        NegP is exactly 0.5 at tau = 0.5. Where the mass diverges towards p = 0 (Power with alpha <= -1) its share below
        any tau > 0 is all of it, and the answer is 0 (1 for tau = 0). Where W has no mass at all (an interval of one
        point), it is NaN.

        Raises:
            ValueError: tau is outside [0, 1], or W is no non-negative function of p alone.
        """
        if not 0 <= tau <= 1:
            raise ValueError(f"tau: expected a probability from 0 to 1, got {tau}")
        if self.signed or self.needs - {"log_complement"}:
            raise ValueError(f"{type(self).__name__}.lean: its weight is no non-negative function of p alone")
        below, above = self.mass(0.0, tau), self.mass(tau, 1.0)
        if math.isinf(below) or math.isinf(above):
            return 0.0 if math.isinf(below) else 1.0
        total = below + above
        return above / total if total > 0 else math.nan

    def mass(self, low: float, high: float) -> float:
        """Integral of W(p) dp from `low` to `high`, infinite where it diverges towards p = 0.

        Gauss-Legendre on dyadic panels; below the last panel W is continued as the power law that the last two panels
        show.
        """
        low, high = max(low, self.interval[0]), min(high, self.interval[1])
        if high <= low:
            return 0.0
        edges = [high]
        while len(edges) <= _PANELS and edges[-1] > low:
            edges.append(max(low, edges[-1] / 2))
        panels = [self._panel(a, b) for b, a in pairwise(edges)]
        tail = 0.0
        if edges[-1] > low and panels[-1] > 0:
            ratio = panels[-1] / panels[-2]
            tail = math.inf if ratio > 1 - 1e-6 else panels[-1] * ratio / (1 - ratio)
        return math.fsum(panels) + tail

    def _panel(self, low: float, high: float) -> float:
        nodes, weights = _gauss_legendre()
        p = low + (high - low) * (nodes + 1) / 2
        stats = TokenStats(log_probs=p.log(), log_complement=torch.log1p(-p))
        return float((self.gradient_weight(stats) * weights).sum() * (high - low) / 2)

    def as_config(self) -> dict[str, Any]:
        """The `class_path` and `init_args` that build this objective again, plain data ready for YAML or JSON."""
        kind: Any = type(self)
        if not dataclasses.is_dataclass(kind):
            raise UserError(
                type(self).__name__,
                "expected an objective that is a dataclass, its fields being its arguments; "
                "decorate the class with @dataclass(frozen=True)",
            )
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(kind) if field.init}
        init_args = {k: v.as_config() if isinstance(v, Objective) else v for k, v in fields.items()}
        module = (
            "lit_probsft.objectives" if type(self).__module__.startswith(f"{__package__}.") else type(self).__module__
        )
        return {"class_path": f"{module}.{type(self).__qualname__}", "init_args": init_args}


class Wrapper(Objective, ABC):
    """An objective around another one, its field `base`, for which it answers."""

    base: Objective

    @property
    def signed(self) -> bool:
        """As the base."""
        return self.base.signed

    @property
    def needs(self) -> frozenset[str]:
        """What the base needs."""
        return self.base.needs

    @property
    def top_k(self) -> int:
        """As the base."""
        return self.base.top_k

    @property
    def interval(self) -> tuple[float, float]:
        """The base's."""
        return self.base.interval

    def fitted(self, capability: Capability) -> Objective:
        """Around the base with its numbers."""
        kind: Any = self
        fitted: Objective = dataclasses.replace(kind, base=self.base.fitted(capability))
        return fitted

    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
        """The base's."""
        return self.base.logged_values(tokens)


class _OneMinusExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exponent: Tensor) -> Tensor:
        ctx.save_for_backward(exponent)
        return -torch.expm1(exponent)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (exponent,) = ctx.saved_tensors
        gradient: Tensor = -upstream[0] * exponent.exp()
        return gradient


def one_minus_exp(exponent: Tensor) -> Tensor:
    """1 - e^x with all digits of the value near x = 0 and of the derivative, -e^x, far below.

    Autograd on `expm1` takes the derivative from the rounded value, where every e^x below 6e-8 is lost to fp32.
    """
    value: Tensor = _OneMinusExp.apply(exponent)  # type: ignore[no-untyped-call]
    return value


def derivative(loss: Tensor, variable: Tensor) -> Tensor:
    """d(sum of loss)/d(variable), zeros where the loss does not depend on the variable at all."""
    if not loss.requires_grad:
        return torch.zeros_like(variable)
    (gradient,) = torch.autograd.grad(loss.sum(), variable, allow_unused=True)
    return torch.zeros_like(variable) if gradient is None else gradient


def _gauss_legendre() -> tuple[Tensor, Tensor]:
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights)
