"""The objective head in place of a model's output layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from torch import Tensor, nn

from lit_probsft.head.adapted import head_weight
from lit_probsft.head.logits import Outputs
from lit_probsft.head.loss import IGNORE_INDEX, HeadOutput, objective_loss
from lit_probsft.head.token_loss import TokenLoss
from lit_probsft.objectives.base import Objective


@dataclass
class HiddenRequest:
    """Hand out the hidden states of supervised positions, in place of logits."""

    labels: Tensor
    """(B, T), unshifted; -100 is ignored."""
    outputs: Outputs | None = None
    """Set by the head, rows in row-major order. The weight is the layer's own, for as long as it is gathered."""


@dataclass
class HeadRequest:
    """What the head computes while a model's forward runs, in place of logits."""

    labels: Tensor
    """(B, T), unshifted: position t predicts labels[:, t + 1]; -100 is ignored."""
    objective: Objective | TokenLoss
    normalizer: float | Tensor | None = None
    token_weight: Tensor | None = None
    """(B, T), at the place of the label that it weighs."""
    context: Mapping[str, Any] | None = None
    reference: Outputs | None = None
    """What a frozen model says about the supervised positions, in row-major order."""
    output: HeadOutput | None = None
    """Set by the head: rows are the supervised positions in row-major order."""


class ObjectiveHead(nn.Linear):
    """Stands in the place of a causal LM's output layer, with the very same parameters.

    Called as usual it is that linear layer, so that generation and saving notice nothing. Inside `answering(request)`
    it selects the hidden states of supervised positions and returns the objective's loss as a (1, 1, 1) tensor instead
    of logits. It runs as the layer's own forward inside the model's, so that whatever gathers sharded weights for a
    layer does so for it.
    """

    logit_scale: float
    soft_cap: float | None
    chunk_size: int | None
    _request: HeadRequest | HiddenRequest | None

    @classmethod
    def replacing(cls, layer: nn.Linear, *, logit_scale: float = 1.0, soft_cap: float | None = None) -> Self:
        """Turn `layer` into a head, in place: parameters, hooks and what a sharding strategy has made of it stay.

        Args:
            layer: the model's output layer, a plain linear layer, perhaps already sharded.
            logit_scale: what the model multiplies its logits by after this layer.
            soft_cap: the cap of the tanh that the model applies to them after that.
        """
        kind = type(layer)
        if kind is nn.Linear:
            layer.__class__ = cls
        else:  # FSDP2 puts its own class over a layer's
            bases = tuple(cls if base is nn.Linear else base for base in kind.__bases__)
            layer.__class__ = type(kind.__name__.replace("Linear", cls.__name__), bases, dict(vars(kind)))
        head = cast(Self, layer)
        head.logit_scale, head.soft_cap, head.chunk_size, head._request = logit_scale, soft_cap, None, None
        return head

    @contextlib.contextmanager
    def answering(self, request: HeadRequest | HiddenRequest) -> Iterator[None]:
        """While the context lasts, forward answers `request` instead of returning logits."""
        self._request = request
        try:
            yield
        finally:
            self._request = None

    def forward(self, input: Tensor) -> Tensor:
        """(B, T, H) -> logits (B, T, V); inside `answering`, the loss as (1, 1, 1)."""
        request = self._request
        if request is None:
            weight = head_weight(self)
            return nn.functional.linear(
                input, weight.to(input.dtype) if weight is not self.weight else weight, self.bias
            )
        targets = request.labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        if isinstance(request, HiddenRequest):
            hidden = input[:, :-1][supervised]
            request.outputs = Outputs(hidden, head_weight(self), self.bias, self.logit_scale, self.soft_cap)
            return input.new_zeros(1, 1, 1)
        weights = None if request.token_weight is None else request.token_weight[:, 1:][supervised]
        request.output = objective_loss(
            input[:, :-1][supervised],
            head_weight(self),
            targets[supervised],
            request.objective,
            bias=self.bias,
            logit_scale=self.logit_scale,
            soft_cap=self.soft_cap,
            normalizer=request.normalizer,
            token_weight=weights,
            context=request.context,
            reference=request.reference,
            chunk_size=self.chunk_size,
        )
        return request.output.loss.reshape(1, 1, 1)
