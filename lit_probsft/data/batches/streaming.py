"""Training on a stream: its blocks become micro-batches, in windows that all ranks agree on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_probsft.data.batches.blocks import Block, BlockReader, block_loader, together
from lit_probsft.data.batches.collate import collate
from lit_probsft.data.batches.loader import Seat
from lit_probsft.data.batches.packing import PackedPlan
from lit_probsft.data.batches.plan import MicroBatch, Plan
from lit_probsft.data.batches.store import InMemory
from lit_probsft.errors import UserError
from lit_probsft.storage.ranks import gather_objects

MOST_LISTED = 10_000
"""Rows that are listed as lost: every checkpoint holds them, and a stream may lose any number. All are counted."""


@dataclass(frozen=True)
class StreamPlan:
    """How a stream is cut into optimizer steps. What meets in a step is decided block by block.

    Attributes:
        batch_size, accumulate, world_size, seed, pool: as in `Plan`.
        max_length: tokens of a pack, where documents share rows; else None.
        buffer: rows of a block, over all ranks.
        num_windows: optimizer steps of the run; None where nobody says.
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
        """Rows of a block: `buffer`, and whole windows of documents where each has a row of its own."""
        return self.buffer if self.max_length is not None else -(-self.buffer // self.window_size) * self.window_size

    def of_block(self, documents: InMemory) -> Plan:
        """One rank's documents of a block, in windows of its own; a block's number is the plan's epoch."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "accumulate": self.accumulate, "seed": self.seed}
        if self.max_length is not None:
            return PackedPlan(documents.lengths, documents.supervised, max_length=self.max_length, **options)
        return Plan(documents.lengths, documents.supervised, pool=self.pool, **options)

    def describe(self) -> dict[str, Any]:
        """The plan in plain data, for the record of a run."""
        names = ("batch_size", "accumulate", "world_size", "seed", "pool", "window_size", "block_size")
        return {"stream": True, "packing": self.max_length, **{name: getattr(self, name) for name in names}}


class StreamLoader:
    """This rank's micro-batches of a stream, as dicts of tensors (see `collate`), as many as the run has steps for.

    Each rank tokenizes its share of a block's rows and plans them by itself; ranks then tell each other, once a block,
    how many windows they have and what is in them, so that a window's counts are those of all ranks. A rank with fewer
    windows goes on with empty micro-batches.

    Its state is the place of the current block and how many of its micro-batches have been given, the same on every
    rank. A run that continues tokenizes that one block anew, and is where it was.

    Args:
        reader: how blocks are made.
        plan: how they are cut.
        rank: which share of a block is this one's.
        pad_token_id: what padding is filled with.
        num_workers: processes that read and tokenize ahead.
        report: counts of rows and tokens over all ranks; kept up to date.
        dropped_rows: rows that were lost, over all ranks; kept up to date.
        check: told the largest id and the longest document of each block.
        gather: gives every rank's object to all; torch.distributed's by default.
    """

    def __init__(
        self,
        reader: BlockReader,
        plan: StreamPlan,
        *,
        rank: int = 0,
        pad_token_id: int,
        num_workers: int = 0,
        report: dict[str, Any] | None = None,
        dropped_rows: list[dict[str, Any]] | None = None,
        check: Callable[[int, int], None] = lambda largest, longest: None,
        gather: Callable[[Any], list[Any]] | None = None,
    ) -> None:
        self.plan, self.rank = plan, rank
        self.report: dict[str, Any] = {} if report is None else report
        self.dropped_rows: list[dict[str, Any]] = [] if dropped_rows is None else dropped_rows
        self._reader = replace(reader, size=plan.block_size, share=rank, shares=plan.world_size)
        self._pad_token_id, self._num_workers = pad_token_id, num_workers
        self._check, self._gather = check, gather or gather_objects
        self._total = 0
        self._at = self._place(0, None)
        self._fruitful = 0  # passes at the end of the last block that had a usable row
        self._iterator: Any = None  # Lightning shuts its workers down where it finds one

    @property
    def batch_sampler(self) -> Seat:
        """Where Lightning looks for `set_epoch`, and DeepSpeed for the batch size."""
        return Seat(self)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: a stream has no epochs."""

    def __len__(self) -> int:
        if self.plan.num_windows is None:
            raise TypeError("a stream has no end: only a trainer's max_steps gives it a length")
        return self.plan.num_windows * self.plan.accumulate

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator: the place is read when the first batch is asked for, after the trainer has set it.
        most = None if self.plan.num_windows is None else len(self)
        if most is not None and self._total >= most:
            self._total = 0
        at = self._at
        # A block that was left in its midst is counted anew.
        self.report.clear()
        self.report.update(copy.deepcopy(at["report"]))
        del self.dropped_rows[at["dropped_rows"] :]
        skip = at["given"]
        for block in self._blocks(at["block"], at["place"]):
            for batch in self._micro_batches(block, skip):
                self._total += 1
                yield batch
                if most is not None and self._total >= most:
                    return
            skip = 0

    def state_dict(self) -> dict[str, Any]:
        """The place: plain data, the same on every rank."""
        plan = self.plan
        state = {**self._at, "dropped_rows": self.dropped_rows[: self._at["dropped_rows"]], "total": self._total}
        return copy.deepcopy({**state, "accumulate": plan.accumulate, "world_size": plan.world_size})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration continue where `state` was taken.

        Raises:
            UserError: on another number of processes, which would share a block's rows otherwise.
        """
        if state["world_size"] != self.plan.world_size:
            raise UserError(
                "--resume",
                f"a stream goes on with as many processes as before, {state['world_size']}, got {self.plan.world_size}",
            )
        state = copy.deepcopy(state)
        self.dropped_rows[:] = state.pop("dropped_rows")
        self.report.update(state["report"])
        ratio = self.plan.accumulate / state["accumulate"]  # of whole windows
        self._total = round(state["total"] * ratio)
        self._at = {
            "block": state["block"],
            "place": state["place"],
            "given": round(state["given"] * ratio),
            "report": state["report"],
            "dropped_rows": len(self.dropped_rows),
        }

    # How it comes about.

    def _blocks(self, number: int, place: Any) -> Iterator[Block]:
        """This rank's shares of the blocks."""
        loader = block_loader(self._reader, number, place, self._num_workers)
        blocks = iter(loader)
        self._iterator = blocks if self._num_workers else None
        while True:
            yield together([next(blocks) for _ in range(max(self._num_workers, 1))])

    def _micro_batches(self, block: Block, skip: int) -> Iterator[dict[str, Any]]:
        plan, accumulate = self.plan, self.plan.accumulate
        documents = InMemory(block.documents, parts=bool(self._reader.row_tokenizer.loaded.source.parts))
        error = block.error
        if error is None:
            try:
                self._check(documents.max_token_id, int(documents.lengths.max(initial=0)))
            except UserError as refusal:
                error = refusal
        ours = plan.of_block(documents)
        counts = ours.window_counts(block.number)
        everyone = self._gather((error, counts, _facts(block, documents)))
        if errors := [told for told, _, _ in everyone if told is not None]:
            raise errors[0]
        windows = max(len(theirs) for _, theirs, _ in everyone)
        total = np.zeros((windows, 3), dtype=np.int64)
        for _, theirs, _ in everyone:
            total[: len(theirs)] += theirs
        begun = self._at
        self._add([facts for _, _, facts in everyone])
        self._guard(windows, block.passes)
        behind = self._place(block.number + 1, block.place)
        self._at = {**begun, "given": skip}
        if not windows:
            self._at = behind
        for index in range(skip, windows * accumulate):
            window = index // accumulate
            batch = self._collated(documents, ours, block.number, index, total[window])
            self._at = behind if index + 1 == windows * accumulate else {**self._at, "given": index + 1}
            yield batch

    def _place(self, number: int, place: Any) -> dict[str, Any]:
        """The state at the beginning of a block, with what has been counted so far."""
        report = copy.deepcopy(self.report)
        return {"block": number, "place": place, "given": 0, "report": report, "dropped_rows": len(self.dropped_rows)}

    def _collated(self, documents: InMemory, ours: Plan, number: int, index: int, counts: Any) -> dict[str, Any]:
        if index < ours.num_micro_batches:
            chosen = ours.micro_batch(number, index)
        else:  # another rank has more
            chosen = MicroBatch((), 0, 0, 0, None if self.plan.max_length is None else ())
        tokens, sequences, length = counts.tolist()
        chosen = replace(chosen, window_tokens=tokens, window_sequences=sequences, window_length=length)
        found = [documents[place] for place in chosen.documents]
        known: dict[str, Any] = documents.fields(chosen.documents)
        batch = collate(chosen, found, self._pad_token_id, **known)
        # In the run's terms, not the block's.
        batch["documents"] = torch.from_numpy(documents.rows[list(chosen.documents)] + number * self.plan.block_size)
        if torch.cuda.is_available():
            return {name: value.pin_memory() if torch.is_tensor(value) else value for name, value in batch.items()}
        return batch

    def _add(self, everyones: list[dict[str, Any]]) -> None:
        """Count what became of a block's rows, on all ranks; tell what is wrong with the first of them."""
        before, common = self.report.get("skipped", 0), self.report.get("in_validation", 0)
        for facts in everyones:
            facts = dict(facts)
            self.dropped_rows += facts.pop("dropped_rows")[: MOST_LISTED - len(self.dropped_rows)]
            for name in ("max_length", "passes"):
                self.report[name] = max(self.report.get(name, 0), facts.pop(name))
            for name, number in facts.items():
                self.report[name] = self.report.get(name, 0) + number
        for loss in [loss for loss in self.dropped_rows if loss["what"] == "skipped"][:3] if not before else []:
            rank_zero_warn(f"data.train: skipped: {loss['reason']}")
        if not common and (common := self.report["in_validation"]):
            remedy = "they are left out" if self._reader.remove else "`data.duplicates: remove` leaves them out"
            first = f"{common} of the first {self.report['rows']} rows"
            rank_zero_warn(f"data.train: {first} are in data.validation too; {remedy}")

    def _guard(self, windows: int, passes: int) -> None:
        """A stream without any usable row, or that has none any more, would be read forever."""
        if windows:
            self._fruitful = passes
        elif passes > self._fruitful + bool(self.report.get("kept")):
            reason = f", the first for its reason: {self.dropped_rows[0]['reason']}" if self.dropped_rows else ""
            none = f"none of {self.report['rows']} can" if not self.report.get("kept") else "none of a whole pass could"
            raise UserError("data.train", f"expected rows that can be used, {none}{reason}")


def _facts(block: Block, documents: InMemory) -> dict[str, Any]:
    return {
        **asdict(block.counts),
        "in_validation": block.in_validation,
        "kept": len(documents),
        "tokens": int(documents.lengths.sum()),
        "supervised_tokens": int(documents.supervised.sum()),
        "max_length": int(documents.lengths.max(initial=0)),
        "passes": block.passes,
    }
