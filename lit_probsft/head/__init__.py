"""The objective head: hidden states, output weight, labels and an objective give the loss, without (N, V) logits."""

from lit_probsft.head.layer import HeadRequest, HiddenRequest, ObjectiveHead
from lit_probsft.head.loss import HeadOutput, objective_loss

__all__ = ["HeadOutput", "HeadRequest", "HiddenRequest", "ObjectiveHead", "objective_loss"]
