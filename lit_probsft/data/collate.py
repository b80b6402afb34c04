"""From documents to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lit_probsft.data.plan import MicroBatch
from lit_probsft.data.tokenization import IGNORED


def collate(
    micro_batch: MicroBatch, documents: Sequence[tuple[Any, Any]], pad_token_id: int, *, prompts: bool = False
) -> dict[str, Any]:
    """One micro-batch as a model takes it.

    Args:
        micro_batch: which documents these are.
        documents: their `(input_ids, labels)`, each (t,).
        pad_token_id: fills `input_ids`; masked wherever it stands for padding.
        prompts: pad on the left and leave out labels and counts, as generation wants it.

    Returns:
        `input_ids` (B, T), `labels` (B, T, -100 where masked; unshifted), `attention_mask` (B, T), all int64;
        `documents` (B,) indices; and the ints `window_tokens`, `window_sequences`, `window_length` and
        `num_tokens` (this micro-batch's tokens without padding). Without documents B = T = 1: one padding token,
        attended to (a row that sees nothing gives NaN) but not supervised, and `documents` is empty.
    """
    lengths = [len(ids) for ids, _ in documents]
    rows, width = max(len(documents), 1), max(lengths, default=1)
    input_ids = np.full((rows, width), pad_token_id, dtype=np.int64)
    labels = np.full((rows, width), IGNORED, dtype=np.int64)
    attention = np.zeros((rows, width), dtype=np.int64)
    for row, (ids, targets) in enumerate(documents):
        place = slice(width - len(ids), width) if prompts else slice(0, len(ids))
        input_ids[row, place], labels[row, place], attention[row, place] = ids, targets, 1
    if not documents:
        attention[:] = 1
    batch: dict[str, Any] = {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention),
        "documents": torch.tensor(micro_batch.documents, dtype=torch.int64),
    }
    if not prompts:
        batch["labels"] = torch.from_numpy(labels)
        batch["window_tokens"] = micro_batch.window_tokens
        batch["window_sequences"] = micro_batch.window_sequences
        batch["window_length"] = micro_batch.window_length
        batch["num_tokens"] = sum(lengths)
    return batch
