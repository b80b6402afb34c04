"""Which supervised tokens of a validation set are followed through training."""

from __future__ import annotations

from typing import Any

import numpy as np

_CONTEXT = 40, 12
"""Tokens before and after a token in `text_around`."""


class FollowedTokens:
    """Some supervised tokens of tokenized documents, spread evenly over the documents.

    Supervised tokens are numbered in the order of the documents. Each followed token has a slot, from 0 on.

    Args:
        documents: tokenized documents of a data set.
        most: the largest number of tokens to follow.
    """

    def __init__(self, documents: Any, most: int) -> None:
        self._documents = documents
        self._ends = np.cumsum(documents.supervised)
        self.total = int(self._ends[-1]) if len(documents) else 0
        count = min(self.total, most)
        self.numbers = np.arange(count) * self.total // max(count, 1)
        self._of = np.searchsorted(self._ends, self.numbers, side="right")

    def of_batch(self, documents: Any) -> tuple[Any, Any]:
        """The followed tokens in a batch.

        Args:
            documents: (B,), the documents in the batch.

        Returns:
            (n,), which supervised tokens of the batch are followed; (n,), their slots.
        """
        counts = self._documents.supervised[documents]
        firsts = self._ends[documents] - counts
        nothing = np.zeros(0, dtype=np.int64)
        numbers = np.concatenate(
            [nothing, *(np.arange(first, first + count) for first, count in zip(firsts, counts, strict=True))]
        )
        if not len(self.numbers):
            return nothing, nothing
        slots = np.searchsorted(self.numbers, numbers).clip(max=len(self.numbers) - 1)
        tokens = np.flatnonzero(self.numbers[slots] == numbers)
        return tokens, slots[tokens]

    def arrays(self) -> dict[str, Any]:
        """`document`, `row` in the source, `position` in the document and `token` id, (n,) each, by slot."""
        found = [self._place(slot) for slot in range(len(self.numbers))]
        ids = [int(self._documents[document][0][position]) for document, position in found]
        document, position = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return {
            "document": document,
            "row": np.asarray(self._documents.rows)[document],
            "position": position,
            "token": np.array(ids, dtype=np.int64),
        }

    def text_around(self, slot: int, tokenizer: Any) -> tuple[str, str, str]:
        """The text before a followed token, of the token itself, and after it."""
        document, at = self._place(slot)
        ids = self._documents[document][0].tolist()
        parts = ids[max(at - _CONTEXT[0], 0) : at], ids[at : at + 1], ids[at + 1 : at + 1 + _CONTEXT[1]]
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        before, token, after = (tokenizer.decode(part, **options) for part in parts)
        return before, token, after

    def _place(self, slot: int) -> tuple[int, int]:
        """Document and position of a followed token."""
        document = int(self._of[slot])
        labels = self._documents[document][1]
        within = int(self.numbers[slot] - self._ends[document] + self._documents.supervised[document])
        return document, int(np.flatnonzero(labels[1:] >= 0)[within]) + 1
