"""Divergence between two models on supervised tokens, in nats per token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_probsft.head.comparison import Comparison, compare_outputs
from lit_probsft.head.loss import IGNORE_INDEX
from lit_probsft.model.forward import outputs_of
from lit_probsft.model.packing import Packs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Divergence:
    """Sums over the supervised tokens of each document; `mean` and `of_each` divide them.

    Attributes:
        documents: (D,), indices of the documents.
        tokens: (D,), number of supervised tokens.
        sums: (7, D), in the order of `NAMES`.
    """

    documents: Tensor
    tokens: Tensor
    sums: Tensor

    NAMES = ("forward_kl", "reverse_kl", "js", "nll_a", "nll_b", "mean_p_a", "mean_p_b")

    def mean(self) -> dict[str, float]:
        """Means over all tokens; NaN without tokens."""
        return dict(zip(self.NAMES, (self.sums.sum(-1) / self.tokens.sum()).tolist(), strict=True))

    def of_each(self) -> list[dict[str, float]]:
        """Means over the tokens of each document, in the order of their indices."""
        order = self.documents.argsort()
        means = (self.sums / self.tokens)[:, order].T.tolist()
        heads = zip(self.documents[order].tolist(), self.tokens[order].tolist(), strict=True)
        return [
            {"document": document, "tokens": tokens, **dict(zip(self.NAMES, values, strict=True))}
            for (document, tokens), values in zip(heads, means, strict=True)
        ]


@torch.no_grad()
def measure_divergence(a: PreTrainedModel, b: PreTrainedModel, batches: Iterable[dict[str, Any]]) -> Divergence:
    """Compare two models, a chunk of tokens at a time.

    Args:
        a: a model in evaluation mode.
        b: another one, on the same device and with the same vocabulary.
        batches: micro-batches of the evaluation loaders, one document per row.
    """
    device = next(a.parameters()).device
    parts = []
    for batch in batches:
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        ids, labels, mask = batch["input_ids"], batch["labels"], batch.get("attention_mask")
        outputs_a, outputs_b = (outputs_of(model, ids, labels, mask, Packs.from_batch(batch)) for model in (a, b))
        supervised = labels[:, 1:] != IGNORE_INDEX
        found = compare_outputs(outputs_a, outputs_b, labels[:, 1:][supervised])
        rows = supervised.nonzero()[:, 0]
        values = _values(found)
        sums = values.new_zeros(len(values), len(ids)).index_add_(1, rows, values)
        real = len(batch["documents"])  # a batch of padding has one row and no document
        parts.append((batch["documents"], supervised.sum(-1)[:real], sums[:, :real]))
    documents, tokens, sums = (torch.cat([part[i] for part in parts], dim=-1).cpu() for i in range(3))
    return Divergence(documents, tokens, sums)


def _values(found: Comparison) -> Tensor:
    """(7, N), in the order of `Divergence.NAMES`."""
    divergences = [found.forward_kl, found.reverse_kl, found.js, -found.log_probs_a, -found.log_probs_b]
    return torch.stack([*divergences, found.log_probs_a.exp(), found.log_probs_b.exp()])
