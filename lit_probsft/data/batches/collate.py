"""From documents to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_probsft.data.batches.plan import MicroBatch
from lit_probsft.data.tokens.tokenization import IGNORED


def collate(
    micro_batch: MicroBatch,
    documents: Sequence[tuple[Any, Any]],
    pad_token_id: int,
    *,
    prompts: bool = False,
    weights: Sequence[float] | NDArray[Any] | None = None,
    sources: Sequence[int] | NDArray[Any] | None = None,
) -> dict[str, Any]:
    """One micro-batch as a model takes it.

    Args:
        micro_batch: which documents these are.
        documents: their `(input_ids, labels)`, each (t,).
        pad_token_id: fills `input_ids`; masked wherever it stands for padding.
        prompts: pad on the left and leave out labels and counts, as generation wants it.
        weights: of each document, in the sum of the step's losses.
        sources: which source each document came from.

    Returns:
        `input_ids` (B, T), `labels` (B, T, -100 where masked; unshifted), `attention_mask` (B, T), all int64;
        `documents` (B,) indices; and the ints `window_tokens`, `window_sequences`, `window_length` and
        `num_tokens` (this micro-batch's tokens without padding). Without documents B = T = 1: one padding token,
        attended to (a row that sees nothing gives NaN) but not supervised, and `documents` is empty.

        Where the plan has packed documents, B counts packs, `labels` are masked at the first token of each document
        (or the last one of its neighbour would predict it), and there are also `position_ids` (B, T), which begin at 0
        with each document, `boundaries` (S + 1,), int32: where documents begin and end in the rows laid one after the
        other, and the int `longest`, the tokens of the longest document. Padding is divided into documents as well.

        With `weights` there is `token_weight` (B, T), fp32, with `sources` `token_source` (B, T), int64: what holds for
        the document that a token belongs to (1 and 0 where there is none).
    """
    of_documents = {} if prompts else {"token_weight": weights, "token_source": sources}
    if micro_batch.packs is not None:
        return _collate_packs(micro_batch, micro_batch.packs, documents, pad_token_id, of_documents)
    lengths = [len(ids) for ids, _ in documents]
    rows, width = max(len(documents), 1), max(lengths, default=1)
    input_ids = np.full((rows, width), pad_token_id, dtype=np.int64)
    labels = np.full((rows, width), IGNORED, dtype=np.int64)
    attention = np.zeros((rows, width), dtype=np.int64)
    places = []
    for row, (ids, targets) in enumerate(documents):
        place = row, slice(width - len(ids), width) if prompts else slice(0, len(ids))
        input_ids[place], labels[place], attention[place] = ids, targets, 1
        places.append(place)
    if not documents:
        attention[:] = 1
    batch: dict[str, Any] = {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention),
        "documents": torch.tensor(micro_batch.documents, dtype=torch.int64),
    }
    if not prompts:
        batch |= {"labels": torch.from_numpy(labels), **_counts(micro_batch, lengths)}
        batch |= _spread(of_documents, places, (rows, width))
    return batch


def _collate_packs(
    micro_batch: MicroBatch,
    packs: tuple[int, ...],
    documents: Sequence[tuple[Any, Any]],
    pad_token_id: int,
    of_documents: dict[str, Any],
) -> dict[str, Any]:
    lengths = [len(ids) for ids, _ in documents]
    longest = max(lengths, default=1)
    firsts = np.cumsum((0, *packs)) if packs else np.array([0, 0])
    filled = np.array([sum(lengths[first:end]) for first, end in pairwise(firsts)])
    shape = rows, width = len(filled), max(int(filled.max()), 1)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.empty(shape, dtype=np.int64)
    boundaries, places = [0], []
    for row in range(rows):
        at = 0
        for ids, targets in documents[firsts[row] : firsts[row + 1]]:
            place = slice(at, at := at + len(ids))
            input_ids[row, place], positions[row, place] = ids, np.arange(len(ids))
            labels[row, place.start + 1 : place.stop] = targets[1:]
            places.append((row, place))
            boundaries.append(row * width + at)
        # Padding must lie within the model's positions, and cost attention no more than documents do.
        positions[row, at:] = np.arange(width - at) % longest
        boundaries += [row * width + min(end, width) for end in range(at + longest, width + longest, longest)]
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
        **_spread(of_documents, places, shape),
    }


def _spread(
    of_documents: dict[str, Any], places: list[tuple[int, slice]], shape: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """What is known of documents, at the places of their tokens."""
    tensors = {}
    for name, values in of_documents.items():
        if values is not None:
            spread = torch.ones(shape) if name == "token_weight" else torch.zeros(shape, dtype=torch.int64)
            for place, value in zip(places, values, strict=True):
                spread[place] = value.item() if isinstance(value, np.generic) else value
            tensors[name] = spread
    return tensors


def _counts(micro_batch: MicroBatch, lengths: Sequence[int]) -> dict[str, int]:
    return {
        "window_tokens": micro_batch.window_tokens,
        "window_sequences": micro_batch.window_sequences,
        "window_length": micro_batch.window_length,
        "num_tokens": sum(lengths),
    }
