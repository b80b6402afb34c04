"""Exchanges objects between the processes of a run."""

from __future__ import annotations

from typing import TypeVar

import torch

_T = TypeVar("_T")


def gather_objects(value: _T) -> list[_T]:
    """The value of every rank, in the order of ranks; all ranks must call it. In a single process, `[value]`."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[_T] = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
