"""The base class of objectives: a member defines `loss`, everything else follows from it."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import UserError
from lit_probsft.objectives.quadrature import integrate
from lit_probsft.objectives.token_stats import HANDED_IN, NEEDS, REFERENCE, Capability, TokenStats

__all__ = [
    "HANDED_IN",
    "NEEDS",
    "REFERENCE",
    "Capability",
    "Objective",
    "TokenStats",
    "Wrapper",
    "derivative",
    "gradient_weight",
    "one_minus_exp",
]


class Objective(ABC):
    """A loss f(p) of one supervised token, where p is the probability that the model gives to it.

    A member is a frozen dataclass whose fields are its hyper-parameters. Configurations name it by its class; there is
    no registry. Masking, weighting, summing and dividing belong to the head. A new member is a class with one method:

        @dataclasses.dataclass(frozen=True)
        class SquaredGap(Objective):
            def loss(self, tokens):
                return (1 - tokens.log_probs.exp()).square()

    Loss and derivative should be finite for every log p from -10000 to 0. (1 - p)^gamma with gamma below 1, for
    example, has an infinite slope at p = 1.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Names of the `TokenStats` fields that `loss` reads in addition to `log_probs`."""
        return frozenset()

    @property
    def top_k(self) -> int:
        """Number of most probable tokens in `top_entropy`."""
        return 20

    @property
    def signed(self) -> bool:
        """Whether `gradient_weight` can be negative, that is, push a token down."""
        return False

    @property
    def interval(self) -> tuple[float, float]:
        """Closed interval of p. Tokens outside it have no loss and no gradient; (0, 1) if every token counts."""
        return (0.0, 1.0)

    @property
    def has_mass(self) -> bool:
        """Whether W is a non-negative function of p alone. Only then `mass` and `lean` are defined."""
        return not (self.signed or self.needs - {"log_complement"})

    @abstractmethod
    def loss(self, tokens: TokenStats) -> Tensor:
        """The loss of each token, (N,), in the dtype of `tokens.log_probs`: no mask, no reduction, no state."""

    def fitted(self, capability: Capability) -> Objective:
        """The objective with its parameters computed from the capability; itself if it doesn't need the capability."""
        return self

    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
        """Values to log at each step, such as the current alpha.

        Args:
            tokens: holds the fields of `HANDED_IN` only.
        """
        return {}

    def gradient_weight(self, tokens: TokenStats | Tensor) -> Tensor:
        """W = -dL/dz_y, the pull on the target's logit, (N,), detached.

        For an f of p alone, W(p) = -f'(p) p (1 - p) (arXiv 2510.00526, section 3).

        Args:
            tokens: token statistics, or just log p, (N,), in nats.

        Raises:
            ValueError: the statistics lack a field that the objective needs.
        """
        stats = tokens if isinstance(tokens, TokenStats) else TokenStats(log_probs=tokens)
        return gradient_weight(self.loss, self.needs, stats, type(self).__name__)

    def lean(self, tau: float = 0.5) -> float:
        """The share of W's mass above p = tau: the integral of W from tau to 1 over its integral from 0 to 1.

        An objective with a lean of at least .5 is prior-leaning: it works on what the model already believes. Below it
        is prior-averse. NegP is exactly .5. If the mass diverges towards p = 0 (Power with alpha <= -1), the lean is 0
        (1 for tau = 0). If W is 0 nearly everywhere (an interval of one point), it is NaN.

        Raises:
            ValueError: tau is outside [0, 1], or W is not a non-negative function of p alone.
        """
        if not 0 <= tau <= 1:
            raise ValueError(f"tau: expected a probability from 0 to 1, got {tau}")
        if not self.has_mass:
            raise ValueError(f"{type(self).__name__}.lean: its weight is not a non-negative function of p alone")
        below, above = self.mass(0.0, tau), self.mass(tau, 1.0)
        if math.isinf(below) or math.isinf(above):
            return 0.0 if math.isinf(below) else 1.0
        total = below + above
        return above / total if total > 0 else math.nan

    def mass(self, low: float, high: float) -> float:
        """Integral of W(p) dp from `low` to `high`, infinite if it diverges towards p = 0."""
        low, high = max(low, self.interval[0]), min(high, self.interval[1])
        return integrate(self._weight_at, low, high) if high > low else 0.0

    def _weight_at(self, p: Tensor) -> Tensor:
        return self.gradient_weight(TokenStats(log_probs=p.log(), log_complement=torch.log1p(-p)))

    def as_config(self) -> dict[str, Any]:
        """`class_path` and `init_args` of this objective, as plain data for YAML or JSON.

        Raises:
            UserError: the class is not a dataclass.
        """
        kind: Any = type(self)
        if not dataclasses.is_dataclass(kind):
            raise UserError(
                type(self).__name__,
                "expected a dataclass, whose fields are the objective's arguments; "
                "decorate the class with @dataclass(frozen=True)",
            )
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(kind) if field.init}
        init_args = {k: v.as_config() if isinstance(v, Objective) else v for k, v in fields.items()}
        module = type(self).__module__
        if module.startswith(f"{__package__}."):
            module = "lit_probsft.objectives"
        return {"class_path": f"{module}.{type(self).__qualname__}", "init_args": init_args}


class Wrapper(Objective, ABC):
    """An objective built on another one, its field `base`. Passes on what the base needs, logs and covers."""

    base: Objective

    @property
    @override
    def needs(self) -> frozenset[str]:
        return self.base.needs

    @property
    @override
    def top_k(self) -> int:
        return self.base.top_k

    @property
    @override
    def signed(self) -> bool:
        return self.base.signed

    @property
    @override
    def interval(self) -> tuple[float, float]:
        return self.base.interval

    @override
    def fitted(self, capability: Capability) -> Objective:
        kind: Any = self
        fitted: Objective = dataclasses.replace(kind, base=self.base.fitted(capability))
        return fitted

    @override
    def logged_values(self, tokens: TokenStats) -> dict[str, float]:
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
    """1 - e^x, with an exact value near x = 0 and an exact derivative -e^x far below.

    Autograd on `expm1` computes the derivative from the rounded value and loses every e^x below 6e-8 in fp32.
    """
    value: Tensor = _OneMinusExp.apply(exponent)  # type: ignore[no-untyped-call]
    return value


def gradient_weight(
    loss_of: Callable[[TokenStats], Tensor], needs: frozenset[str], stats: TokenStats, name: str
) -> Tensor:
    """`Objective.gradient_weight` of any function of `TokenStats`, (N,), detached.

    Args:
        loss_of: returns the loss of each token, (N,).
        needs: the `TokenStats` fields that it reads in addition to `log_probs`.
        stats: statistics of N tokens.
        name: name of the objective, for the error message.

    Raises:
        ValueError: the statistics lack a field that the loss needs.
    """
    missing = sorted(field for field in needs if getattr(stats, field) is None)
    if missing:
        raise ValueError(f"{name}.gradient_weight needs TokenStats with {', '.join(missing)}")
    with torch.enable_grad():
        if "logits" in needs:
            assert stats.logits is not None
            assert stats.labels is not None
            logits = stats.logits.detach().requires_grad_()
            target = stats.labels.unsqueeze(-1)
            log_probs = logits.log_softmax(-1).gather(-1, target).squeeze(-1)
            loss = loss_of(stats.replace(logits=logits, log_probs=log_probs))
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
            return -gradient.gather(-1, target).squeeze(-1)
        log_probs = stats.log_probs.detach().requires_grad_()
        slope = derivative(loss_of(stats.replace(log_probs=log_probs)), log_probs)
    # d log p / dz_y = 1 - p
    complement = -torch.expm1(stats.log_probs) if stats.log_complement is None else stats.log_complement.exp()
    return -slope * complement.to(slope.dtype)


def derivative(loss: Tensor, variable: Tensor) -> Tensor:
    """d(sum of loss)/d(variable), zeros if the loss does not depend on the variable."""
    if not loss.requires_grad:
        return torch.zeros_like(variable)
    (gradient,) = torch.autograd.grad(loss.sum(), variable, allow_unused=True)
    return torch.zeros_like(variable) if gradient is None else gradient
