"""Checks of the arguments of `objective_loss`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.head.logits import Outputs
from lit_probsft.head.token_loss import TokenLoss
from lit_probsft.objectives.base import HANDED_IN, NEEDS, REFERENCE

IGNORE_INDEX = -100
"""The label of a position that has no loss."""


def check_tokens(outputs: Outputs, labels: Tensor, token_weight: Tensor | None) -> None:
    """Check that `labels` and `token_weight` have one entry per token and that the weights are constants.

    Raises:
        ValueError: naming the argument.
    """
    count = len(outputs.hidden)
    for name, tensor in (("labels", labels), ("token_weight", token_weight)):
        if tensor is not None and tuple(tensor.shape) != (count,):
            raise ValueError(f"objective_loss: expected {name} ({count},), got {tuple(tensor.shape)}")
    if token_weight is not None and token_weight.requires_grad:
        raise ValueError("objective_loss: expected a constant token_weight, got one that requires a gradient")


def check_label_ids(labels: Tensor, vocabulary: int) -> None:
    """Check that all labels are ids of the vocabulary; on CPUs only.

    On CUDA the comparison would cost a synchronization, and the data module has compared the largest id with the
    model's vocabulary.

    Raises:
        UserError: with the range of the labels.
    """
    if labels.device.type == "cpu" and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < vocabulary:
        raise UserError(
            "labels",
            f"expected ids from 0 to {vocabulary - 1} (or {IGNORE_INDEX}), "
            f"got {int(labels.min())} to {int(labels.max())}: does the tokenizer belong to this model?",
        )


def check_needs(token_loss: TokenLoss, context: Mapping[str, Any]) -> None:
    """Check that the loss needs only known fields, and that `context` has the ones that the caller provides.

    Raises:
        ValueError: naming the unknown or missing fields.
    """
    name, needs = token_loss.name, token_loss.needs
    if unknown := sorted(needs - NEEDS):
        raise ValueError(f"{name}.needs: expected names of {sorted(NEEDS)}, got {unknown}")
    if unknown := sorted(context.keys() - HANDED_IN):
        raise ValueError(f"objective_loss: expected context of {sorted(HANDED_IN)}, got {unknown}")
    if missing := sorted((needs & HANDED_IN) - context.keys()):
        raise ValueError(f"{name} needs {', '.join(missing)}, which objective_loss takes in `context`")


def check_reference(token_loss: TokenLoss, reference: Outputs | None, outputs: Outputs) -> None:
    """Check the reference of a loss that reads one.

    Raises:
        ValueError: the reference is missing or has other tokens or another vocabulary than the model.
    """
    name, needs = token_loss.name, token_loss.needs
    if not needs & REFERENCE:
        return
    if reference is None:
        fields = ", ".join(sorted(needs & REFERENCE))
        raise ValueError(f"{name} needs {fields}, for which objective_loss takes a `reference`")
    if "reference_logits" in needs and "logits" not in needs:
        raise ValueError(f"{name}.needs: expected `logits` as well as `reference_logits`, got {sorted(needs)}")
    count, vocabulary = len(outputs.hidden), outputs.vocabulary
    if (len(reference.hidden), reference.vocabulary) != (count, vocabulary):
        raise ValueError(
            f"objective_loss: expected a reference of {count} tokens over a vocabulary of {vocabulary}, "
            f"got {len(reference.hidden)} over {reference.vocabulary}"
        )
