"""Checks the stream of a data module before training, and makes its loader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lit_probsft.data.batches.duplicates import digests
from lit_probsft.data.batches.row_tokenizer import RowTokenizer
from lit_probsft.data.batches.store import TokenStore
from lit_probsft.data.batches.stream_checks import check_stream, stream_fingerprint
from lit_probsft.data.batches.stream_plan import StreamPlan
from lit_probsft.data.batches.streaming import StreamLoader
from lit_probsft.data.plans import data_ranks

if TYPE_CHECKING:
    from lit_probsft.data.datamodule import InstructionDataModule


def check_and_report_stream(data: InstructionDataModule, row_tokenizer: RowTokenizer) -> dict[str, Any]:
    """Checks the first rows, and returns the report of a stream that is not read yet.

    Raises:
        UserError: the stream has no usable row, or the trainer no end.
    """
    check_stream(row_tokenizer, None if data.trainer is None else data.trainer.max_steps)
    names = ("validation_fraction", "seed", "shuffle_buffer", "duplicates")
    fingerprint = stream_fingerprint(row_tokenizer, {name: getattr(data, name) for name in names})
    rank_zero_info(f"data.train: a stream, shuffled in blocks of {data.plan.describe()['block_size']} rows")
    return {"stream": True, "fingerprint": fingerprint}


def stream_loader(
    data: InstructionDataModule, row_tokenizer: RowTokenizer, plan: StreamPlan, validation: TokenStore | None
) -> StreamLoader:
    """Makes this rank's loader, which keeps the data module's report and dropped rows of training up to date."""
    module = getattr(data.trainer, "lightning_module", None)
    return StreamLoader(
        row_tokenizer,
        plan,
        rank=data_ranks(data.trainer)[1],
        pad_token_id=data.tokenizer.pad_token_id,
        num_workers=data.num_workers,
        validation=frozenset() if validation is None else digests(validation),
        remove_duplicates=data.duplicates == "remove",
        report=data.report["train"],
        dropped_rows=data.dropped_rows["train"],
        check=getattr(module, "check_fits", lambda largest_id, longest: None),
    )
