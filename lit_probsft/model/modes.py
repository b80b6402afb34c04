"""Switches a model to evaluation mode for a block of code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within this block, dropout is off; at its end the previous mode is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
