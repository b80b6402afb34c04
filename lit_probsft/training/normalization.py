"""What the sum of the losses of an optimizer step is divided by."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.head.loss import IGNORE_INDEX
from lit_probsft.model.packing import Packs

Normalize = Literal["tokens", "sequence", "kept", "micro_batch"]


def step_size(batch: dict[str, Any], normalize: Normalize) -> int:
    """The divisor of a whole step that a micro-batch carries; 1 if the divisor is known only after the forward passes.

    Raises:
        UserError: the batch comes from another data module and does not carry it.
    """
    missing = [key for key in ("input_ids", "labels", "window_tokens", "window_sequences") if key not in batch]
    if missing:
        raise UserError("batch", f"expected a batch of InstructionDataModule, got one without {', '.join(missing)}")
    sizes: dict[str, int] = {"tokens": batch["window_tokens"], "sequence": batch["window_sequences"]}
    return max(sizes.get(normalize, 1), 1)


def token_weights(batch: dict[str, Any], normalize: Normalize, packs: Packs | None) -> Tensor | None:
    """(B, T), the factor of each token in the sum: the weight of its row, and with `sequence` one over the number of
    supervised tokens of its document. None if all are 1."""
    rows: Tensor | None = batch.get("token_weight")
    if normalize != "sequence":
        return rows
    supervised = batch["labels"] != IGNORE_INDEX
    supervised[:, 0] = False  # no position predicts it
    counts = supervised.sum(-1, keepdim=True) if packs is None else packs.supervised_per_document(supervised)
    weights: Tensor = (1 / counts.clamp(min=1)).expand_as(batch["labels"])
    return weights if rows is None else weights * rows


def with_auxiliary_loss(loss: Tensor, auxiliary: Tensor | None, batch: dict[str, Any], normalize: Normalize) -> Tensor:
    """Add the auxiliary loss of a mixture of experts, which balances the experts.

    A micro-batch of padding only, which completes the last step of an epoch, has none.

    Raises:
        UserError: with `kept`, which divides gradients after the backward passes.
    """
    if auxiliary is None:
        return loss
    if normalize == "kept":
        raise UserError("model.normalize", "kept would also divide the auxiliary loss of a mixture of experts")
    return loss + auxiliary * float(batch["documents"].numel() > 0)
