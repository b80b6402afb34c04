"""Turns the documents of a micro-batch into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_probsft.data.batches.plan import MicroBatch
from lit_probsft.data.rows.formats import IGNORED


def collate(
    micro_batch: MicroBatch,
    documents: Sequence[tuple[Any, Any]],
    pad_token_id: int,
    *,
    prompts: bool = False,
    weights: Sequence[float] | NDArray[Any] | None = None,
    sources: Sequence[int] | NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Makes the tensors of one micro-batch.

    Args:
        micro_batch: the documents' indices and the counts.
        documents: `(input_ids, labels)` of each document, each (t,).
        pad_token_id: pads `input_ids`; padding is always masked.
        prompts: pad on the left and leave out labels and counts, for generation.
        weights: factor of each document in the sum of the step's losses.
        sources: source of each document.

    Returns:
        `input_ids` (B, T), `labels` (B, T, -100 where masked; unshifted), `attention_mask` (B, T), all int64;
        `documents` (B,) indices; and the ints `window_tokens`, `window_sequences`, `window_length` and
        `num_tokens` (the tokens of this micro-batch without padding). Without documents, B = T = 1: one padding token
        that is attended to (a row that attends to nothing gives NaN) but not supervised, and `documents` is empty.

        If documents are packed, B is the number of packs, and `labels` are masked at the first token of each document
        (the document before it would predict that token). There are also `position_ids` (B, T), which restart at 0 in
        each document, `boundaries` (S + 1,), int32, the offsets at which documents start and end in the flattened rows,
        and the int `longest`, the tokens of the longest document. Padding is divided into documents as well.

        `weights` add `token_weight` (B, T), fp32; `sources` add `token_source` (B, T), int64: the value of the
        document that a token belongs to (1 and 0 for padding).
    """
    per_document = {} if prompts else {"token_weight": weights, "token_source": sources}
    if micro_batch.packs is not None:
        return _collate_packs(micro_batch, micro_batch.packs, documents, pad_token_id, per_document)
    lengths = [len(ids) for ids, _ in documents]
    rows, width = max(len(documents), 1), max(lengths, default=1)
    input_ids = np.full((rows, width), pad_token_id, dtype=np.int64)
    labels = np.full((rows, width), IGNORED, dtype=np.int64)
    attention = np.zeros((rows, width), dtype=np.int64)
    spans = []
    for row, (ids, targets) in enumerate(documents):
        span = row, slice(width - len(ids), width) if prompts else slice(0, len(ids))
        input_ids[span], labels[span], attention[span] = ids, targets, 1
        spans.append(span)
    if not documents:
        attention[:] = 1
    batch: dict[str, Any] = {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention),
        "documents": torch.tensor(micro_batch.documents, dtype=torch.int64),
    }
    if not prompts:
        batch |= {"labels": torch.from_numpy(labels), **_counts(micro_batch, lengths)}
        batch |= _spread(per_document, spans, (rows, width))
    return batch


def _collate_packs(
    micro_batch: MicroBatch,
    packs: tuple[int, ...],
    documents: Sequence[tuple[Any, Any]],
    pad_token_id: int,
    per_document: dict[str, Any],
) -> dict[str, Any]:
    lengths = [len(ids) for ids, _ in documents]
    longest = max(lengths, default=1)
    firsts = np.cumsum((0, *packs)) if packs else np.array([0, 0])
    filled = np.array([sum(lengths[first:end]) for first, end in pairwise(firsts)])
    shape = rows, width = len(filled), max(int(filled.max()), 1)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.empty(shape, dtype=np.int64)
    boundaries, spans = [0], []
    for row in range(rows):
        end = 0
        for ids, targets in documents[firsts[row] : firsts[row + 1]]:
            start, end = end, end + len(ids)
            input_ids[row, start:end], positions[row, start:end] = ids, np.arange(len(ids))
            labels[row, start + 1 : end] = targets[1:]
            spans.append((row, slice(start, end)))
            boundaries.append(row * width + end)
        # Padding is cut up too, so that its positions are valid and attention to it costs no more than to a document.
        positions[row, end:] = np.arange(width - end) % longest
        boundaries += [row * width + min(stop, width) for stop in range(end + longest, width + longest, longest)]
    attention = (np.arange(width) < filled[:, None]).astype(np.int64)
    if not documents:
        attention[:] = 1
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention),
        "documents": torch.tensor(micro_batch.documents, dtype=torch.int64),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(positions),
        "boundaries": torch.tensor(boundaries, dtype=torch.int32),
        "longest": longest,
        **_counts(micro_batch, lengths),
        **_spread(per_document, spans, shape),
    }


def _spread(
    per_document: dict[str, Any], spans: list[tuple[int, slice]], shape: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """Copies each document's values to all of its tokens."""
    tensors = {}
    for name, values in per_document.items():
        if values is not None:
            spread = torch.ones(shape) if name == "token_weight" else torch.zeros(shape, dtype=torch.int64)
            for span, value in zip(spans, values, strict=True):
                spread[span] = value.item() if isinstance(value, np.generic) else value
            tensors[name] = spread
    return tensors


def _counts(micro_batch: MicroBatch, lengths: Sequence[int]) -> dict[str, int]:
    return {
        "window_tokens": micro_batch.window_tokens,
        "window_sequences": micro_batch.window_sequences,
        "window_length": micro_batch.window_length,
        "num_tokens": sum(lengths),
    }
