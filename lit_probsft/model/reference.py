"""The frozen reference model of anchored objectives.

The reference is not part of the trained module: the optimizer, checkpoints and the export do not contain it. A resumed
run loads it again from its source, and stops with an error if its weights have changed.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_probsft.errors import UserError
from lit_probsft.head.logits import Outputs
from lit_probsft.model.adapters import adapters_off
from lit_probsft.model.fingerprint import fingerprint
from lit_probsft.model.forward import install_head, outputs_of
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.model.packing import Packs
from lit_probsft.model.pretrained import PretrainedCausalLM, merge_folder, source_of
from lit_probsft.model.source import ModelSource
from lit_probsft.parallel.sharding import Sharding

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True)
class Reference:
    """The model that an objective compares the trained model with; loaded only if the objective needs it.

    Args:
        model: its source, with the trained model's vocabulary; None is the trained model's own source, that is, the
            model before training, with the adapters of `model.lora.start`. With LoRA this takes no second copy: the
            adapters are switched off. A copy is needed with `model.lora.start` or modules that are trained in full. A
            copy is not quantized.
        dtype: of its weights and its computation; `auto` is bfloat16, or float64 if the trained model is in float64.
    """

    model: ModelSource | str | None = None
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "bfloat16", "float32", "float64"):
            raise UserError("model.reference.dtype", f"expected auto, bfloat16, float32 or float64, got {self.dtype!r}")

    def dtype_for(self, trained: torch.dtype) -> torch.dtype:
        """The reference's dtype, given that of the trained weights."""
        if self.dtype != "auto":
            found: torch.dtype = getattr(torch, self.dtype)
            return found
        return torch.float64 if trained == torch.float64 else torch.bfloat16

    def source_for(self, trained: ModelSource | None) -> ModelSource | None:
        """The reference's source, given the trained model's; None if the trained model was passed in as a module."""
        return trained if self.model is None else source_of(self.model)


class FrozenModel:
    """A reference that has been loaded.

    Args:
        model: with an objective head.
        adapted: whether it is the trained model itself, whose adapters are switched off to get the reference.
    """

    def __init__(self, model: PreTrainedModel, *, adapted: bool = False) -> None:
        self.model, self._adapted = model, adapted
        if not adapted:
            model.requires_grad_(False).eval()

    @contextlib.contextmanager
    def outputs(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None, packs: Packs | None
    ) -> Iterator[Outputs]:
        """The reference's outputs at the supervised positions, in row-major order.

        They are valid within the block, in which the output layer of a sharded model stays gathered.
        """
        from torch.distributed.fsdp import FSDPModule

        with adapters_off(self.model) if self._adapted else contextlib.nullcontext():
            outputs = outputs_of(self.model, input_ids, labels, attention_mask, packs)
        try:
            yield outputs
        finally:
            if isinstance(self.model, FSDPModule) and not self._adapted:
                self.model.reshard()

    def fingerprint(self, device: torch.device) -> str:
        """The fingerprint of the reference's weights. All ranks have to call it.

        Args:
            device: on which the ranks communicate.
        """
        if self._adapted:
            return "the model without its adapters"
        return fingerprint(self.model, device)


def load_reference(
    source: ModelSource,
    tokenizer: Any,
    trained: torch.dtype,
    dtype: torch.dtype,
    sharding: Sharding | None,
    *,
    own: bool = False,
    adapters: str | None = None,
) -> FrozenModel:
    """Load a reference.

    Args:
        source: where it is loaded from.
        tokenizer: gives a model with random weights its vocabulary.
        trained: dtype in which the trained model was loaded; random weights depend on it.
        dtype: of the reference.
        sharding: how the trainer's strategy shards models; None if each rank holds the whole model.
        own: whether `source` is `model.reference.model`, and not the source of the trained model.
        adapters: a folder of adapters that belong to the reference. They are merged into it, or injected if it is
            sharded.
    """
    try:
        model = evaluation_source(source, dtype).load(tokenizer, trained, sharding)
    except UserError as error:
        if not own:
            raise
        argument = error.argument.replace("model.model", "model.reference.model", 1)
        raise UserError(argument, error.problem) from error
    if sharding is not None:
        model = sharding.shard(model)
        if adapters is not None:
            lora = LoRA.from_folder(adapters, "model.lora.start")
            inject_adapters(model, dataclasses.replace(lora, start=adapters), sharding)
            sharding.shard_adapters(model)
    elif adapters is not None:
        model = merge_folder(model, adapters, "model.lora.start")
    model = model.to(dtype)
    install_head(model)
    return FrozenModel(model)


def evaluation_source(source: ModelSource, dtype: torch.dtype) -> ModelSource:
    """The source of the same model for evaluation only, in `dtype` if it is loaded from files.

    Random weights depend on the dtype in which they are drawn. They equal the trained model's only if they are cast
    afterwards.
    """
    wanted: dict[str, Any] = {"gradient_checkpointing": False, "compile": False}
    if isinstance(source, PretrainedCausalLM):
        wanted["quantization"] = "none"
        wanted["dtype"] = str(dtype).removeprefix("torch.")
    known = {field.name for field in dataclasses.fields(source)}
    return dataclasses.replace(source, **{name: value for name, value in wanted.items() if name in known})


def freeze_copy(model: PreTrainedModel, dtype: torch.dtype, sharding: Sharding | None) -> FrozenModel:
    """A reference that is a copy of a whole model in its present state."""
    copied = copy.deepcopy(model).to(dtype)
    return FrozenModel(copied if sharding is None else sharding.shard(copied))


def check_reference(reference: PreTrainedModel, model: PreTrainedModel) -> None:
    """Check that a reference has the model's vocabulary.

    Raises:
        UserError: with both sizes.
    """
    theirs, ours = (m.get_output_embeddings().out_features for m in (reference, model))
    if theirs != ours:
        raise UserError(
            "model.reference.model",
            f"expected a model with the trained model's vocabulary of {ours} tokens, got one with {theirs}",
        )
