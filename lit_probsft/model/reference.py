"""The frozen model that anchored objectives are compared with: where it comes from, where it lives, what it says.

It is no part of the module that is trained: neither optimizer nor checkpoint nor export knows it. A run that continues
loads it anew from its source, and is refused if that has changed.
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
from lit_probsft.model.packing import Packs
from lit_probsft.model.sources import ModelSource, PretrainedCausalLM, source_of, without_adapters
from lit_probsft.parallel.sharding import Sharding

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True)
class Reference:
    """What an objective that needs a reference is compared with; loaded by no other.

    Args:
        model: where it comes from, with the trained model's vocabulary; None is the trained model's own source, that is
            the model before training, with the adapters of `model.lora.start`. With LoRA that takes no second copy,
            unless there are such, or modules are trained whole: the adapters are switched off. A second copy is not
            quantized.
        dtype: of its weights and its computation; `auto` is bfloat16, or float64 beside a model in float64.
    """

    model: ModelSource | str | None = None
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "bfloat16", "float32", "float64"):
            raise UserError("model.reference.dtype", f"expected auto, bfloat16, float32 or float64, got {self.dtype!r}")

    def dtype_beside(self, trained: torch.dtype) -> torch.dtype:
        """The dtype, given that of the trained weights."""
        if self.dtype != "auto":
            found: torch.dtype = getattr(torch, self.dtype)
            return found
        return torch.float64 if trained == torch.float64 else torch.bfloat16

    def source_beside(self, trained: ModelSource | None) -> ModelSource | None:
        """Where it comes from, given where the trained model does; None where that was handed in as it is."""
        return trained if self.model is None else source_of(self.model)


class FrozenModel:
    """A reference that has been loaded.

    Args:
        model: with an objective head.
        adapted: it is the trained model itself, which the reference is while its adapters are off.
    """

    def __init__(self, model: PreTrainedModel, *, adapted: bool = False) -> None:
        self.model, self._adapted = model, adapted
        if not adapted:
            model.requires_grad_(False).eval()

    @contextlib.contextmanager
    def saying(
        self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None, packs: Packs | None
    ) -> Iterator[Outputs]:
        """What it says about the supervised positions, in row-major order; valid inside the context, in which the
        output layer of a model in slices stays gathered."""
        from torch.distributed.fsdp import FSDPModule

        with adapters_off(self.model) if self._adapted else contextlib.nullcontext():
            outputs = outputs_of(self.model, input_ids, labels, attention_mask, packs)
        try:
            yield outputs
        finally:
            if isinstance(self.model, FSDPModule) and not self._adapted:
                self.model.reshard()

    def fingerprint(self, device: torch.device) -> str:
        """The same for the same weights, whole or in slices on any number of ranks, which must all ask for it.

        Args:
            device: on which the ranks talk to each other.
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
    """Load it.

    Args:
        source: where it comes from.
        tokenizer: gives a randomly initialized model its vocabulary.
        trained: dtype in which the trained model was loaded: random weights depend on it.
        dtype: of the reference.
        sharding: of the trainer's strategy.
        own: it is named as the reference, and not the model before training.
        adapters: a folder of them, that are part of it: merged into it, or beside it where it is cut.
    """
    try:
        model = without_training(source, dtype).load(tokenizer, trained, sharding)
    except UserError as error:
        if not own:
            raise
        argument = error.argument.replace("model.model", "model.reference.model", 1)
        raise UserError(argument, error.problem) from error
    lora = None if adapters is None else dataclasses.replace(LoRA.of(adapters, "model.lora.start"), start=adapters)
    if sharding is not None:
        model = sharding.shard(model)
        if lora is not None:
            lora.inject(model, sharding)
            sharding.shard_adapters(model)
    elif lora is not None:
        model = without_adapters(model, lora)
    model = model.to(dtype)
    install_head(model)
    return FrozenModel(model)


def without_training(source: ModelSource, dtype: torch.dtype) -> ModelSource:
    """The same model as it is read for evaluation alone; in `dtype` if it is read from files. Random weights depend on
    the dtype in which they are drawn, and are the trained model's only if they are cast afterwards."""
    wanted: dict[str, Any] = {"gradient_checkpointing": False, "compile": False}
    if isinstance(source, PretrainedCausalLM):
        wanted["quantization"] = "none"
        wanted["dtype"] = str(dtype).removeprefix("torch.")
    known = {field.name for field in dataclasses.fields(source)}
    return dataclasses.replace(source, **{name: value for name, value in wanted.items() if name in known})


def copied(model: PreTrainedModel, dtype: torch.dtype, sharding: Sharding | None) -> FrozenModel:
    """A reference that is a copy of a model as it is now, whole on this rank."""
    copy_ = copy.deepcopy(model).to(dtype)
    return FrozenModel(copy_ if sharding is None else sharding.shard(copy_))


def check_reference(reference: PreTrainedModel, model: PreTrainedModel) -> None:
    """Refuse a reference over another vocabulary than the model's.

    Raises:
        UserError: naming both.
    """
    theirs, ours = (m.get_output_embeddings().out_features for m in (reference, model))
    if theirs != ours:
        raise UserError(
            "model.reference.model",
            f"expected a model over the trained model's vocabulary of {ours} tokens, got one over {theirs}",
        )
