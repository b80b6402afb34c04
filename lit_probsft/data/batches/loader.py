"""The one stateful object of the data's way: a loader that knows how many micro-batches it has given.

It is no `torch.utils.data.DataLoader` but holds one. The trainer rebuilds loaders of that class (to put a distributed
sampler in, or to follow predictions), which would undo the plan; an object with a length and an iterator it leaves
alone.
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
    """This rank's micro-batches of a plan, as dicts of tensors (see `collate`), an epoch per iteration.

    Its state, epoch and micro-batches given, is the same on every rank, counts what the trainer received and not what
    workers fetched ahead, and continues exactly there after `load_state_dict`; at an epoch's end it continues with the
    next epoch. `set_epoch` (which Lightning calls at the start of each epoch) forgets a place in any other epoch.

    Args:
        store: the documents.
        plan: their order.
        rank: whose micro-batches; out of `plan.world_size`.
        pad_token_id: what padding is filled with.
        prompts: batches for generation: padded on the left, no labels.
        num_workers: processes that fetch ahead; they stay alive from epoch to epoch.
        fixed_epoch: stay with the first epoch's order whatever the trainer says (evaluation, overfitting on purpose).
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
        self._epoch = self._given = self._skip = 0
        self._batches = _Batches(store, pad_token_id, prompts)
        self._num_workers = num_workers
        self._loader: DataLoader[Any] | None = None

    @property
    def batch_sampler(self) -> Seat:
        """Where Lightning looks for `set_epoch`, and DeepSpeed for the batch size.

        An attribute `sampler` would do for the former as well, but is taken for an invitation to replace it. Made when
        asked for: in a cycle of references, workers would be told too late that they are no longer needed.
        """
        return Seat(self)

    @property
    def _iterator(self) -> Any:
        # What Lightning shuts down, and sets to None, when its loops end: workers left to the garbage collector take
        # ten seconds to go.
        return None if self._loader is None else self._loader._iterator

    @_iterator.setter
    def _iterator(self, value: None) -> None:
        self._loader = None

    def __len__(self) -> int:
        return self.plan.num_micro_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator: epoch and place are read when the first batch is asked for, after the trainer has set both.
        epoch, start = self._epoch, self._skip
        self._given, self._skip = start, 0
        if self._loader is None:
            self._loader = self._make_loader()
        sampler = self._loader.sampler
        assert isinstance(sampler, _PlanSampler)
        sampler.epoch, sampler.start = epoch, start
        for batch in self._loader:
            if self._epoch == epoch:
                self._given += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration."""
        if epoch != self._epoch and not self.fixed_epoch:
            self._epoch, self._given, self._skip = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """`epoch`, and `batches`: how many of that epoch's micro-batches each rank has been given, `accumulate` of them
        to a window."""
        return {"epoch": self._epoch, "batches": max(self._given, self._skip), "accumulate": self.plan.accumulate}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration continue where `state` was taken, however windows are cut into micro-batches."""
        windows, rest = divmod(state["batches"], state.get("accumulate", self.plan.accumulate))
        self._epoch, self._skip, self._given = state["epoch"], windows * self.plan.accumulate + rest, 0
        if self._skip >= len(self):
            self._epoch, self._skip = self._epoch + 1, 0

    def _make_loader(self) -> DataLoader[Any]:
        workers: dict[str, Any] = {}
        if self._num_workers:
            workers = {**WORKERS, "persistent_workers": True}
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=_PlanSampler(self.plan, self.rank),
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            **workers,
        )


class Seat:
    """Stands where a `DataLoader` has its batch sampler."""

    def __init__(self, loader: Any) -> None:
        self.sampler, self.batch_size = loader, loader.plan.batch_size


class _PlanSampler(Sampler[MicroBatch]):
    """One epoch from `start` onwards. Runs in the main process, workers or not."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank, self.epoch, self.start = plan, rank, 0, 0

    def __iter__(self) -> Iterator[MicroBatch]:
        epoch = self.epoch
        for index in range(self.start, self.plan.num_micro_batches):
            yield self.plan.micro_batch(epoch, index, self.rank)

    def __len__(self) -> int:
        return self.plan.num_micro_batches - self.start


class _Batches(Dataset[dict[str, Any]]):
    """Indexed by a micro-batch, gives its tensors."""

    def __init__(self, store: Documents, pad_token_id: int, prompts: bool) -> None:
        self.store, self.pad_token_id, self.prompts = store, pad_token_id, prompts

    def __getitem__(self, micro_batch: MicroBatch) -> dict[str, Any]:
        documents = [self.store[index] for index in micro_batch.documents]
        known = self.store.fields(micro_batch.documents)
        return collate(micro_batch, documents, self.pad_token_id, prompts=self.prompts, **known)
