"""The shape of a stream's optimizer steps. Which documents share a step is decided block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_probsft.data.batches.packing import PackedPlan
from lit_probsft.data.batches.plan import Plan
from lit_probsft.data.batches.store import InMemory


@dataclass(frozen=True)
class StreamPlan:
    """Divides a stream into blocks and optimizer steps.

    Attributes:
        batch_size, accumulate, world_size, seed, pool: as in `Plan`.
        max_length: the most tokens of a pack; None if documents are not packed.
        buffer: rows of a block, over all ranks.
        num_windows: optimizer steps of the run; None if unknown.
    """

    batch_size: int
    accumulate: int = 1
    world_size: int = 1
    seed: int = 0
    pool: int = 50
    max_length: int | None = None
    buffer: int = 10_000
    num_windows: int | None = None

    @property
    def window_size(self) -> int:
        """G: rows of a complete window, as in `Plan`."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def block_size(self) -> int:
        """Rows of a block: `buffer`, rounded up to complete windows unless documents are packed."""
        return self.buffer if self.max_length is not None else -(-self.buffer // self.window_size) * self.window_size

    def of_block(self, documents: InMemory) -> Plan:
        """Plans one rank's documents of a block, as if it were alone. The block's number serves as the epoch."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "accumulate": self.accumulate, "seed": self.seed}
        if self.max_length is not None:
            return PackedPlan(documents.lengths, documents.supervised, max_length=self.max_length, **options)
        return Plan(documents.lengths, documents.supervised, pool=self.pool, **options)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data, for the record of a run."""
        names = ("batch_size", "accumulate", "world_size", "seed", "pool", "window_size", "block_size")
        return {"stream": True, "packing": self.max_length, **{name: getattr(self, name) for name in names}}
