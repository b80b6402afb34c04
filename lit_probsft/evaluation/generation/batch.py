"""Answers that are generated together, and the cache of their keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_probsft.evaluation.generation.requests import Draw, Request


@dataclass(eq=False)
class Row:
    """An answer in progress. It holds all that is needed to go on, in this batch or another.

    Attributes:
        tokens: of the answer so far.
        finish_reason: None until the answer is finished.
    """

    request: Request
    draw: Draw
    tokens: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.request.prompt, *self.tokens]

    @property
    def length(self) -> int:
        """The number of `ids`."""
        return len(self.request.prompt) + len(self.tokens)


@dataclass
class Batch:
    """Rows that are decoded together, each padded on the left.

    Attributes:
        rows: B answers in progress.
        logits: (B, V) of the next tokens.
        cache: transformers' cache of the rows; None for a model that is computed without one.
        width: the number of its positions, which is the length of the longest row.
    """

    rows: list[Row]
    logits: Tensor
    cache: Any
    width: int

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these rows, and drop positions that are padding in all of them. `logits` are stale afterwards."""
        self.rows = [self.rows[index] for index in indices]
        width = max((row.length for row in self.rows), default=0) - 1  # the last token is not in the cache yet
        if self.cache is not None and self.rows:
            self.cache.reorder_cache(torch.tensor(indices, device=self.logits.device))
            if can_join(self.cache):
                self._drop_positions(self.width - width)
                self.width = width

    def join(self, other: Batch) -> Batch:
        """This batch followed by the rows of another, for caches that `can_join`."""
        for mine, theirs in zip(_filled(self.cache), _filled(other.cache), strict=True):
            length = max(mine.keys.shape[-2], theirs.keys.shape[-2])
            for name in ("keys", "values"):
                parts = (getattr(mine, name), getattr(theirs, name))
                setattr(mine, name, torch.cat([pad(part, (0, 0, length - part.shape[-2], 0)) for part in parts]))
            if mine.is_sliding:
                mine.cumulative_length = max(mine.cumulative_length, theirs.cumulative_length)
        logits = torch.cat([self.logits, other.logits])
        return Batch([*self.rows, *other.rows], logits, self.cache, max(self.width, other.width))

    def _drop_positions(self, count: int) -> None:
        for layer in _filled(self.cache) if count else ():
            left = layer.get_seq_length() - count  # a sliding layer may hold fewer
            layer.keys, layer.values = layer.keys[..., -left:, :], layer.values[..., -left:, :]
            if layer.is_sliding:
                layer.cumulative_length = left


def _filled(cache: Any) -> list[Any]:
    """The layers that hold states. Others share those of another layer."""
    return [layer for layer in cache.layers if getattr(layer, "is_initialized", False)]


def can_join(cache: Any) -> bool:
    """Whether all layers hold a key and a value for each position, so that caches of different widths can be joined.

    The states of recurrent layers and of compressed attention cannot be padded.
    """
    from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

    return all(type(layer) in (DummyLayer, DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
