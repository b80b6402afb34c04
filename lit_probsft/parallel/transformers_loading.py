"""Changes how transformers loads a model under FSDP2. The only module that replaces parts of transformers.

`from_pretrained` calls `maybe_distribute_model` on the empty model and then loads each rank's shards through
`DtensorShardOperation`. Both are replaced for the time of a context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def shard_while_loading(shard: Callable[[Any], Any]) -> Iterator[None]:
    """While this lasts, `from_pretrained` with a `distributed_config` shards the empty model with `shard`."""
    from transformers import PreTrainedModel

    def distribute(_: type, model: Any, *__: Any) -> Any:
        model.config.distributed_config = None  # it must not be saved with the model
        return shard(model)

    PreTrainedModel.maybe_distribute_model = classmethod(distribute)
    try:
        yield
    finally:
        del PreTrainedModel.maybe_distribute_model  # the inherited method is back


@contextlib.contextmanager
def pad_with_zero_rows() -> Iterator[None]:
    """While this lasts, a stored tensor may have fewer rows than the model: zeros follow its rows."""
    from transformers.distributed.sharding_utils import DtensorShardOperation

    load = DtensorShardOperation.shard_tensor

    def padded(operation: Any, source: Any, tensor_idx: int | None = None, **options: Any) -> Any:
        shape = list(source.shape) if isinstance(source, Tensor) else source.get_shape()
        if tensor_idx is None and shape and shape[0] < operation._axis0_size:
            source = _Padded(source, operation._axis0_size)
        return load(operation, source, tensor_idx=tensor_idx, **options)

    DtensorShardOperation.shard_tensor = padded
    try:
        yield
    finally:
        DtensorShardOperation.shard_tensor = load


def extend_with_zeros(value: Tensor, rows: int) -> Tensor:
    """A copy of a tensor with zero rows added, `rows` in all."""
    return torch.cat([value.detach(), value.new_zeros(rows - len(value), *value.shape[1:])])


class _Padded:
    """A tensor in a file, with zero rows added."""

    def __init__(self, source: Any, rows: int) -> None:
        self._source, self._rows = source, rows

    def get_shape(self) -> list[int]:
        return [self._rows, *self._shape[1:]]

    @property
    def _shape(self) -> list[int]:
        return list(self._source.shape) if isinstance(self._source, Tensor) else list(self._source.get_shape())

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        rows, *rest = index
        end = self._shape[0]
        part: Tensor = self._source[(slice(min(rows.start, end), min(rows.stop, end)), *rest)]
        return extend_with_zeros(part, rows.stop - rows.start)
