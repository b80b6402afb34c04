"""Loads the micro-batches of a plan, and remembers how many the trainer has received.

`PlanLoader` is not a `torch.utils.data.DataLoader` but uses one. Lightning rebuilds loaders of that class (to insert a
distributed sampler, or to track predictions), which would undo the plan. It leaves other objects with a length and an
iterator alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_probsft.data.batches.collate import collate
from lit_probsft.data.batches.plan import MicroBatch, Plan
from lit_probsft.data.batches.store import Documents
from lit_probsft.parallel.parent import exit_with_parent

# Not fork: a forked worker inherits locks held by threads that it does not have, and can wait for them forever. torch
# only watches the fork server, which in turn waits for its workers, so each worker watches this process itself.
WORKERS: dict[str, Any] = {"multiprocessing_context": "forkserver", "worker_init_fn": exit_with_parent}
"""Options of every `DataLoader` with worker processes."""


class PlanLoader:
    """This rank's micro-batches of a plan, as dicts of tensors (see `collate`). Each iteration is one epoch.

    The state is the epoch and the number of micro-batches that the trainer has received in it, without the ones that
    workers have prefetched. It is the same on every rank. After `load_state_dict` the loader continues there, or with
    the next epoch if the state is the end of an epoch. `set_epoch`, which Lightning calls before each epoch, resets the
    position if the epoch is another one.

    Args:
        store: the documents.
        plan: their order.
        rank: this rank, out of `plan.world_size`.
        pad_token_id: pads `input_ids` (see `Documents.padding_id`).
        prompts: make batches for generation: padded on the left, without labels.
        num_workers: processes that prepare batches ahead; they stay alive from epoch to epoch.
        fixed_epoch: repeat the first epoch's order whatever the trainer sets (for evaluation, and deliberate
            overfitting).
    """

    def __init__(
        self,
        store: Documents,
        plan: Plan,
        *,
        rank: int = 0,
        pad_token_id: int,
        prompts: bool = False,
        num_workers: int = 0,
        fixed_epoch: bool = False,
    ) -> None:
        self.plan, self.rank, self.fixed_epoch = plan, rank, fixed_epoch
        self._epoch = 0
        self._num_received = 0  # micro-batches of the epoch
        self._skip = 0  # micro-batches that the next iteration leaves out
        self._batches = _Batches(store, pad_token_id, prompts)
        self._num_workers = num_workers
        self._loader: DataLoader[Any] | None = None

    @property
    def batch_sampler(self) -> BatchSamplerProxy:
        """Gives Lightning `set_epoch`, and DeepSpeed the batch size.

        An attribute `sampler` would give `set_epoch` too, but Lightning would replace it. Made on request: in a
        reference cycle, workers would be shut down too late.
        """
        return BatchSamplerProxy(self)

    @property
    def _iterator(self) -> Any:
        # Lightning shuts down the workers it finds here at the end of its loops, and then sets this to None. Workers
        # left to the garbage collector take ten seconds to end.
        return None if self._loader is None else self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: None) -> None:
        self._loader = None

    def __len__(self) -> int:
        return self.plan.num_micro_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator reads the state when the first batch is requested, after the trainer has set it.
        epoch, start = self._epoch, self._skip
        self._num_received, self._skip = start, 0
        if self._loader is None:
            self._loader = self._make_loader()
        sampler = self._loader.sampler
        assert isinstance(sampler, _PlanSampler)
        sampler.epoch, sampler.start = epoch, start
        for batch in self._loader:
            if self._epoch == epoch:
                self._num_received += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        if epoch != self._epoch and not self.fixed_epoch:
            self._epoch, self._num_received, self._skip = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Returns `epoch`, `batches` (micro-batches received in it on each rank), and `accumulate` (micro-batches per
        window)."""
        batches = max(self._num_received, self._skip)
        return {"epoch": self._epoch, "batches": batches, "accumulate": self.plan.accumulate}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken, even if windows now have another number of micro-batches."""
        windows, rest = divmod(state["batches"], state.get("accumulate", self.plan.accumulate))
        self._epoch, self._skip, self._num_received = state["epoch"], windows * self.plan.accumulate + rest, 0
        if self._skip >= len(self):
            self._epoch, self._skip = self._epoch + 1, 0

    def _make_loader(self) -> DataLoader[Any]:
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=_PlanSampler(self.plan, self.rank),
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            **({**WORKERS, "persistent_workers": True} if self._num_workers else {}),
        )


class BatchSamplerProxy:
    """Takes the place of a `DataLoader`'s batch sampler: its sampler, which has `set_epoch`, is the loader itself."""

    def __init__(self, loader: Any) -> None:
        self.sampler, self.batch_size = loader, loader.plan.batch_size


class _PlanSampler(Sampler[MicroBatch]):
    """The micro-batches of an epoch from `start` on. Runs in the main process, with or without workers."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank, self.epoch, self.start = plan, rank, 0, 0

    def __iter__(self) -> Iterator[MicroBatch]:
        epoch = self.epoch
        for index in range(self.start, self.plan.num_micro_batches):
            yield self.plan.micro_batch(epoch, index, self.rank)

    def __len__(self) -> int:
        return self.plan.num_micro_batches - self.start


class _Batches(Dataset[dict[str, Any]]):
    """Maps a micro-batch to its tensors."""

    def __init__(self, store: Documents, pad_token_id: int, prompts: bool) -> None:
        self.store, self.pad_token_id, self.prompts = store, store.padding_id(pad_token_id), prompts

    def __getitem__(self, micro_batch: MicroBatch) -> dict[str, Any]:
        documents = [self.store[index] for index in micro_batch.documents]
        fields: dict[str, Any] = self.store.fields(micro_batch.documents)
        return collate(micro_batch, documents, self.pad_token_id, prompts=self.prompts, **fields)
