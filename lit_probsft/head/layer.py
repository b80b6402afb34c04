"""The objective head as a model's output layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from torch import Tensor, nn
from typing_extensions import override

from lit_probsft.head.adapted import head_weight
from lit_probsft.head.checks import IGNORE_INDEX
from lit_probsft.head.logits import Outputs
from lit_probsft.head.loss import HeadOutput, objective_loss
from lit_probsft.head.token_loss import TokenLoss
from lit_probsft.objectives.base import Objective


@dataclass
class HiddenRequest:
    """Asks the head for the hidden states of supervised positions."""

    labels: Tensor
    """(B, T), unshifted; -100 is ignored."""
    outputs: Outputs | None = None
    """Set by the head, rows in row-major order. The weight is the layer's own and valid while it is gathered."""


@dataclass
class HeadRequest:
    """Asks the head for the loss of supervised positions."""

    labels: Tensor
    """(B, T), unshifted: position t predicts labels[:, t + 1]; -100 is ignored."""
    objective: Objective | TokenLoss
    normalizer: float | Tensor | None = None
    token_weight: Tensor | None = None
    """(B, T), each at the position of the label that it weighs."""
    context: Mapping[str, Any] | None = None
    reference: Outputs | None = None
    """A frozen model's outputs at the supervised positions, in row-major order."""
    output: HeadOutput | None = None
    """Set by the head: rows are the supervised positions in row-major order."""


class ObjectiveHead(nn.Linear):
    """A causal LM's output layer with the same parameters that can also compute the loss.

    Called as usual it is that linear layer, so that generation and saving work as before. Inside `answering(request)`
    it selects the hidden states of supervised positions and returns the objective's loss as a (1, 1, 1) tensor instead
    of logits. It runs as the layer's own forward inside the model's forward, so that a strategy that gathers sharded
    weights for each layer gathers them for the head as well.
    """

    logit_scale: float
    soft_cap: float | None
    chunk_size: int | None
    adapters_enabled = True
    _request: HeadRequest | HiddenRequest | None

    @classmethod
    def replacing(cls, layer: nn.Linear, *, logit_scale: float = 1.0, soft_cap: float | None = None) -> Self:
        """Turn `layer` into a head, in place: its parameters, hooks and sharding stay.

        Args:
            layer: the model's output layer, a plain linear layer, which may already be sharded.
            logit_scale: the factor by which the model multiplies its logits after this layer.
            soft_cap: the cap of the tanh that the model applies to them after that.
        """
        kind = type(layer)
        if kind is nn.Linear:
            layer.__class__ = cls
        else:  # FSDP2 derives a class of its own from the layer's class
            bases = tuple(cls if base is nn.Linear else base for base in kind.__bases__)
            layer.__class__ = type(kind.__name__.replace("Linear", cls.__name__), bases, dict(vars(kind)))
        head = cast(Self, layer)
        head.logit_scale, head.soft_cap, head.chunk_size, head._request = logit_scale, soft_cap, None, None
        return head

    @contextlib.contextmanager
    def answering(self, request: HeadRequest | HiddenRequest) -> Iterator[None]:
        """Within this block, forward answers `request` instead of returning logits."""
        self._request = request
        try:
            yield
        finally:
            self._request = None

    def enable_adapters(self, enabled: bool) -> None:
        """Compute with or without the layer's own adapters, as peft's layers do under the same name."""
        self.adapters_enabled = enabled

    @override
    def forward(self, input: Tensor) -> Tensor:
        """(B, T, H) -> logits (B, T, V); inside `answering`, the loss as (1, 1, 1)."""
        request = self._request
        weight = head_weight(self)
        if request is None:
            return nn.functional.linear(
                input, weight.to(input.dtype) if weight is not self.weight else weight, self.bias
            )
        targets = request.labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        hidden = input[:, :-1][supervised]
        if isinstance(request, HiddenRequest):
            request.outputs = Outputs(hidden, weight, self.bias, self.logit_scale, self.soft_cap)
            return input.new_zeros(1, 1, 1)
        request.output = objective_loss(
            hidden,
            weight,
            targets[supervised],
            request.objective,
            bias=self.bias,
            logit_scale=self.logit_scale,
            soft_cap=self.soft_cap,
            normalizer=request.normalizer,
            token_weight=None if request.token_weight is None else request.token_weight[:, 1:][supervised],
            context=request.context,
            reference=request.reference,
            chunk_size=self.chunk_size,
        )
        return request.output.loss.reshape(1, 1, 1)
