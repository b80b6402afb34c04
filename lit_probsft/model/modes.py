"""Modes of a model that a block of code switches and hands back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off within this block; training mode is as before at its end."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
