"""Trains on a stream: turns its blocks into micro-batches, in windows that all ranks agree on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_probsft.data.batches.blocks import Block, BlockReader, block_loader, merge_blocks
from lit_probsft.data.batches.collate import collate
from lit_probsft.data.batches.loader import BatchSamplerProxy
from lit_probsft.data.batches.plan import MicroBatch, Plan
from lit_probsft.data.batches.prepare import merge_unused
from lit_probsft.data.batches.reporting import report_split_rows, report_unused, warn_control_tokens, warn_skipped
from lit_probsft.data.batches.row_tokenizer import RowTokenizer
from lit_probsft.data.batches.store import InMemory
from lit_probsft.data.batches.stream_plan import StreamPlan
from lit_probsft.errors import UserError
from lit_probsft.storage.ranks import gather_objects

MAX_LISTED = 10_000
"""The most dropped rows that are listed, as every checkpoint contains the list. All of them are counted."""


@dataclass(frozen=True)
class _State:
    """How far a stream has been read.

    Attributes:
        block: number of the current block.
        position: where the block's first row is; None for the start of the stream.
        batches: micro-batches of the block that each rank has received.
        report: the counts before the block.
        num_listed: number of dropped rows listed before the block.
    """

    block: int
    position: Any
    batches: int
    report: dict[str, Any]
    num_listed: int


class StreamLoader:
    """This rank's micro-batches of a stream, as dicts of tensors (see `collate`), for all steps of the run.

    Each rank tokenizes its share of a block's rows and plans them by itself. Once per block the ranks exchange how many
    windows they have and the counts of each window, so that the counts in a batch cover all ranks. A rank with fewer
    windows continues with empty micro-batches.

    The state is the position of the current block and the number of its micro-batches that each rank has received. It
    is the same on every rank. A resumed run tokenizes that one block again and continues where it stopped.

    Args:
        row_tokenizer: source, tokenizer and recipe.
        plan: the shape of blocks and steps.
        rank: this rank, out of `plan.world_size`.
        pad_token_id: pads `input_ids` (see `Documents.padding_id`).
        num_workers: processes that read and tokenize ahead.
        validation: digests of the validation set's documents.
        remove_duplicates: drop documents that are also in the validation set.
        report: counts of rows and tokens over all ranks; kept up to date.
        dropped_rows: rows dropped or skipped on any rank; kept up to date.
        check: called with the largest id and the longest document of each block; may raise a UserError.
        gather: returns the objects of all ranks; uses torch.distributed by default.
    """

    def __init__(
        self,
        row_tokenizer: RowTokenizer,
        plan: StreamPlan,
        *,
        rank: int = 0,
        pad_token_id: int,
        num_workers: int = 0,
        validation: frozenset[bytes] = frozenset(),
        remove_duplicates: bool = False,
        report: dict[str, Any] | None = None,
        dropped_rows: list[dict[str, Any]] | None = None,
        check: Callable[[int, int], None] = lambda largest, longest: None,
        gather: Callable[[Any], list[Any]] = gather_objects,
    ) -> None:
        self.plan, self.rank = plan, rank
        self.report: dict[str, Any] = {} if report is None else report
        self.dropped_rows: list[dict[str, Any]] = [] if dropped_rows is None else dropped_rows
        self._reader = BlockReader(
            row_tokenizer,
            plan.block_size,
            rank=rank,
            world_size=plan.world_size,
            validation=validation,
            remove_duplicates=remove_duplicates,
            seed=plan.seed,
        )
        self._pad_token_id, self._num_workers = pad_token_id, num_workers
        self._check, self._gather = check, gather
        self._num_batches = 0  # micro-batches of the run that each rank has received
        self._state = self._state_before(0, None)
        self._last_useful_pass = 0  # complete passes when the last block with a usable row ended
        self._iterator: Any = None  # Lightning looks here for workers to shut down

    @property
    def batch_sampler(self) -> BatchSamplerProxy:
        """Gives Lightning `set_epoch`, and DeepSpeed the batch size."""
        return BatchSamplerProxy(self)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: a stream has no epochs."""

    def __len__(self) -> int:
        if self.plan.num_windows is None:
            raise TypeError("a stream has no end: only a trainer's max_steps gives it a length")
        return self.plan.num_windows * self.plan.accumulate

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator reads the state when the first batch is requested, after the trainer has restored it.
        limit = None if self.plan.num_windows is None else len(self)
        if limit is not None and self._num_batches >= limit:
            self._num_batches = 0
        state = self._state
        # The rows of an unfinished block are counted again.
        self.report.clear()
        self.report.update(copy.deepcopy(state.report))
        del self.dropped_rows[state.num_listed :]
        skip = state.batches
        for block in self._blocks(state.block, state.position):
            for batch in self._micro_batches(block, skip):
                self._num_batches += 1
                yield batch
                if limit is not None and self._num_batches >= limit:
                    return
            skip = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data, the same on every rank."""
        state, plan = self._state, self.plan
        return copy.deepcopy(
            {
                "block": state.block,
                "place": state.position,
                "given": state.batches,
                "report": state.report,
                "losses": self.dropped_rows[: state.num_listed],
                "total": self._num_batches,
                "accumulate": plan.accumulate,
                "world_size": plan.world_size,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            UserError: the number of processes has changed, and with it their shares of a block.
        """
        if state["world_size"] != self.plan.world_size:
            raise UserError(
                "--resume",
                f"expected {state['world_size']} processes as before, since each reads its share of the stream, "
                f"got {self.plan.world_size}",
            )
        state = copy.deepcopy(state)
        self.dropped_rows[:] = state["losses"]
        self.report.update(state["report"])
        ratio = self.plan.accumulate / state["accumulate"]  # the state holds complete windows
        self._num_batches = round(state["total"] * ratio)
        batches = round(state["given"] * ratio)
        self._state = _State(state["block"], state["place"], batches, state["report"], len(self.dropped_rows))

    # Internals.

    def _state_before(self, block: int, position: Any) -> _State:
        return _State(block, position, 0, copy.deepcopy(self.report), len(self.dropped_rows))

    def _blocks(self, number: int, position: Any) -> Iterator[Block]:
        """This rank's part of each block, from block `number` on."""
        parts = iter(block_loader(self._reader, number, position, self._num_workers))
        self._iterator = parts if self._num_workers else None
        while True:
            yield merge_blocks([next(parts) for _ in range(max(self._num_workers, 1))])

    def _micro_batches(self, block: Block, skip: int) -> Iterator[dict[str, Any]]:
        """This rank's micro-batches of a block, without the first `skip`."""
        documents = InMemory(block.documents, parts=bool(self._reader.row_tokenizer.loaded.source.parts))
        plan = self.plan.of_block(documents)
        counts = plan.window_counts(block.number)
        error = block.error or self._error_of_check(documents)
        ranks = self._gather((error, counts, _facts(block, documents)))
        if errors := [error for error, _, _ in ranks if error is not None]:
            raise errors[0]
        num_windows = max(len(counts) for _, counts, _ in ranks)
        totals = np.zeros((num_windows, 3), dtype=np.int64)
        for _, counts, _ in ranks:
            totals[: len(counts)] += counts
        state = self._state
        self._count_rows([facts for _, _, facts in ranks])
        self._check_progress(num_windows, block.passes)
        next_state = self._state_before(block.number + 1, block.position)
        if not num_windows:
            self._state = next_state
        num_batches = num_windows * self.plan.accumulate
        for index in range(skip, num_batches):
            batch = self._batch(documents, plan, block.number, index, totals[index // self.plan.accumulate])
            self._state = replace(state, batches=index + 1) if index + 1 < num_batches else next_state
            yield batch

    def _error_of_check(self, documents: InMemory) -> UserError | None:
        try:
            self._check(documents.max_token_id, int(documents.lengths.max(initial=0)))
        except UserError as error:
            return error
        return None

    def _batch(self, documents: InMemory, plan: Plan, block: int, index: int, totals: Any) -> dict[str, Any]:
        """Micro-batch `index` of a block, with the `totals` of its window over all ranks."""
        if index < plan.num_micro_batches:
            micro_batch = plan.micro_batch(block, index)
        else:  # another rank has more
            micro_batch = MicroBatch((), 0, 0, 0, None if self.plan.max_length is None else ())
        tokens, sequences, length = totals.tolist()
        micro_batch = replace(micro_batch, window_tokens=tokens, window_sequences=sequences, window_length=length)
        chosen = [documents[document] for document in micro_batch.documents]
        fields: dict[str, Any] = documents.fields(micro_batch.documents)
        batch = collate(micro_batch, chosen, documents.padding_id(self._pad_token_id), **fields)
        # Numbers of rows that are unique in the run, not only in the block. Documents of a split row share one.
        batch["documents"] = torch.from_numpy(
            documents.rows[list(micro_batch.documents)] + block * self.plan.block_size
        )
        if torch.cuda.is_available():
            return {name: value.pin_memory() if torch.is_tensor(value) else value for name, value in batch.items()}
        return batch

    def _count_rows(self, facts_of_ranks: list[dict[str, Any]]) -> None:
        """Add a block's counts, over all ranks, to the report. Log the first split or skipped rows and duplicates."""
        before = self.report.copy()
        for facts in facts_of_ranks:
            facts = dict(facts)
            self.dropped_rows += facts.pop("dropped_rows")[: MAX_LISTED - len(self.dropped_rows)]
            self.report["unused"] = merge_unused(self.report.get("unused", []), facts.pop("unused"))
            for name in ("max_length", "passes"):
                self.report[name] = max(self.report.get(name, 0), facts.pop(name))
            for name, number in facts.items():
                self.report[name] = self.report.get(name, 0) + number
        if not before.get("with_control_tokens"):
            warn_control_tokens("train", self.report["with_control_tokens"], self.report["rows"])
        if not before.get("skipped"):
            warn_skipped("train", self.dropped_rows)
        if not before.get("unused"):
            report_unused("train", self.report["unused"])
        if not before.get("split_rows"):
            report_split_rows("train", self.report, "the first ")
        if not before.get("in_validation") and (duplicates := self.report["in_validation"]):
            remedy = "they are dropped" if self._reader.remove_duplicates else "`data.duplicates: remove` drops them"
            first = f"{duplicates} of the first {self.report['rows']} rows"
            rank_zero_warn(f"data.train: {first} are in data.validation too; {remedy}")

    def _check_progress(self, num_windows: int, passes: int) -> None:
        """Raise a UserError if a whole pass had no usable row: the stream would be read forever."""
        if num_windows:
            self._last_useful_pass = passes
        elif passes > self._last_useful_pass + bool(self.report.get("kept")):
            none = "none in a whole pass" if self.report.get("kept") else f"none of {self.report['rows']}"
            reason = f"; the first: {self.dropped_rows[0]['reason']}" if self.dropped_rows else ""
            raise UserError("data.train", f"expected usable rows, got {none}{reason}")


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
