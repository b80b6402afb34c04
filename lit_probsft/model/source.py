"""The interface of model sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lit_probsft.parallel.sharding import Sharding, decoder_layers, global_numel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTypeName = Literal["auto", "float32", "bfloat16", "float64"]


@dataclass(frozen=True)
class ModelSource(ABC):
    """Where a causal language model comes from. Members are frozen dataclasses; a config names them by class path."""

    @abstractmethod
    def load(
        self, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype, sharding: Sharding | None = None
    ) -> PreTrainedModel:
        """Load the model, in training mode.

        Args:
            tokenizer: gives a model with random weights its vocabulary and special tokens.
            dtype: of the weights, unless the source names its own.
            sharding: how the trainer's strategy shards models; None if each process holds the whole model. With it, a
                source that can read each rank's shards alone does so; a whole model is sharded by the caller.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """A few words for the model card and the run's record."""

    @property
    def tokenizer_name(self) -> str | None:
        """Hub id or folder of the model's own tokenizer, if it has one."""
        return None

    @property
    def commit(self) -> str | None:
        """The commit that is loaded, for a model on the hub."""
        return None

    def new_tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> Mapping[str, int]:
        """The tokens, with their ids, that were added to `tokenizer` and that the model has not been trained with.

        A model with random weights has not been trained with any token, so no token is new to it.
        """
        return {}


def ready_to_train(model: PreTrainedModel, gradient_checkpointing: bool, compile_layers: bool) -> PreTrainedModel:
    """Switch the model to training mode, with gradient checkpointing and compiled decoder layers if asked for."""
    # Torch gives the padding token's embedding no gradient. Padding is masked and has none anyway, but the token that
    # ends turns may also be the padding token, and then its embedding is trained like any other.
    model.get_input_embeddings().padding_idx = None
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if compile_layers:
        # Only the forward is compiled. Hooks that gather a layer's weights, and recomputation, stay around it.
        for layer in decoder_layers(model):
            layer.forward = torch.compile(layer.forward)
    return model.train()


def describe(model: PreTrainedModel) -> Mapping[str, Any]:
    """Type and size of a model, for the run's record."""
    return {
        "architecture": type(model).__name__,
        "parameters": sum(global_numel(p) for p in model.parameters()),
        "trainable_parameters": sum(global_numel(p) for p in model.parameters() if p.requires_grad),
    }
