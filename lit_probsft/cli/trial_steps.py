"""The optimizer steps that a dry run makes: the largest of the run, and one of average size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from lit_probsft.data import InstructionDataModule
from lit_probsft.data.batches.loader import PlanLoader
from lit_probsft.data.batches.packing import PackedPlan
from lit_probsft.data.batches.plan import MicroBatch, Plan
from lit_probsft.data.batches.store import Documents
from lit_probsft.training.probing import Subset, training_documents

_STREAM_ROWS = 2000
"""Rows to read from the start of a stream, at most a shuffle buffer."""
_PADDING_WINDOWS = 64
"""Windows whose padding is measured, evenly spaced over an epoch."""


class TrialSteps:
    """Two optimizer steps of a run: one that no step of the run exceeds, and one of average size.

    With a row for each document the largest step is that of the longest documents, which can meet in some epoch. Packs
    have one size: the largest step is the one with most tokens.

    Args:
        datamodule: after `setup`.

    Attributes:
        documents: all training documents; of a stream, those of its first rows.
        plan: of the run.
        batches: this rank's micro-batches of the largest step, then those of the average step.
    """

    def __init__(self, datamodule: InstructionDataModule) -> None:
        self.datamodule = datamodule
        rows = min(_STREAM_ROWS, datamodule.shuffle_buffer) if datamodule.streaming else None
        self.documents: Documents = training_documents(datamodule, rows)
        self.plan = datamodule.plan if isinstance(datamodule.plan, Plan) else self._plan_of(self.documents)
        sizes = self.plan.window_counts(0)[:, 2]
        average = self._window(self.documents, self.plan, int(np.abs(sizes - sizes.mean()).argmin()))
        if isinstance(self.plan, PackedPlan):
            largest = self._window(self.documents, self.plan, int(sizes.argmax()))
        else:
            sampler = self.plan.sampler
            visited = np.arange(len(self.documents)) if sampler is None else np.unique(sampler.documents(0))
            order = np.argsort(-self.documents.lengths[visited], kind="stable")
            longest = Subset(self.documents, visited[order][: self.plan.window_size].tolist())
            largest = self._window(longest, self._plan_of(longest), 0)
        self.batches = [*largest, *average]

    def _plan_of(self, documents: Documents) -> Plan:
        """The plan of a run over these documents."""
        plan: Any = self.datamodule.plan
        options = {name: getattr(plan, name) for name in ("batch_size", "accumulate", "world_size", "seed")}
        lengths, supervised = documents.lengths, documents.supervised
        if self.datamodule.packing:
            assert self.datamodule.max_length is not None
            return PackedPlan(lengths, supervised, max_length=self.datamodule.max_length, **options)
        return Plan(lengths, supervised, pool=plan.pool, **options)

    def _window(self, documents: Documents, plan: Plan, number: int) -> list[dict[str, Any]]:
        """This rank's micro-batches of a window of the first epoch."""
        loader = PlanLoader(
            documents,
            plan,
            rank=self.datamodule.loader_over(documents).rank,
            pad_token_id=self.datamodule.tokenizer.pad_token_id,
        )
        loader.load_state_dict({"epoch": 0, "batches": number * plan.accumulate})
        return list(islice(loader, plan.accumulate))

    def padding(self) -> float:
        """The share of padding in the micro-batches, over windows of the first epoch."""
        room = tokens = 0
        for micro_batch in self._sampled_micro_batches():
            lengths = self.documents.lengths[list(micro_batch.documents)]
            packs = micro_batch.packs
            rows = lengths if packs is None else np.array([part.sum() for part in np.split(lengths, np.cumsum(packs))])
            room += max(len(rows[rows > 0]), 1) * int(rows.max(initial=1))
            tokens += int(lengths.sum())
        return 1 - tokens / room

    def _sampled_micro_batches(self) -> Iterator[MicroBatch]:
        plan, windows = self.plan, self.plan.num_windows
        for window in np.unique(np.linspace(0, windows - 1, min(windows, _PADDING_WINDOWS)).astype(int)).tolist():
            for index in range(window * plan.accumulate, (window + 1) * plan.accumulate):
                for rank in range(plan.world_size):
                    yield plan.micro_batch(0, index, rank)
