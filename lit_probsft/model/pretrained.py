"""Pretrained models from the hub, a folder or a GGUF file."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from lit_probsft.data.tokens.tokenizers import read_tokenizer
from lit_probsft.errors import UserError
from lit_probsft.model.adapters import merge_adapters, stored_transposed
from lit_probsft.model.loading import (
    check_complete,
    check_model_path,
    gguf_options,
    read_config_of,
    read_gguf,
    report_load_errors,
)
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.model.quantization import Quantization, check_installed, loading_options, quiet, without_repacking
from lit_probsft.model.source import DTypeName, ModelSource, ready_to_train
from lit_probsft.model.vocabulary import extend_vocabulary, grow_vocabulary, new_tokens, rows_needed
from lit_probsft.parallel.sharding import Sharding
from lit_probsft.storage.adapter_folder import adapters_at, is_adapter_folder, read_config
from lit_probsft.storage.gguf import gguf_at
from lit_probsft.storage.hub import model_commit, warn_of_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PretrainedCausalLM(ModelSource):
    """A model from the hub, a local folder in Hugging Face's format, or a GGUF file, which is dequantized.

    Args:
        model_name_or_path: hub id, folder, GGUF file, or `ORG/REPOSITORY/FILE.gguf` for such a file on the hub.
        revision: branch, tag or commit on the hub; for adapters, their own revision, since they name that of their
            base.
        dtype: of the weights; `auto` is float32, the master weights, unless the trainer's precision is `bf16-true`.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2` ..., as transformers names them; None lets
            transformers choose.
        gradient_checkpointing: recompute each decoder layer in backward; the head is never recomputed.
        compile: run each decoder layer through torch.compile.
        trust_remote_code: run code from the model's folder, for a model that transformers does not know.
        quantization: `nf4` or `int8` keeps the frozen matrices of the decoder layers in 4 or 8 bits, for training
            adapters (QLoRA); `none` keeps them in `dtype`. Not available with strategies that shard the model.
    """

    model_name_or_path: str
    revision: str | None = None
    dtype: DTypeName = "auto"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    trust_remote_code: bool = False
    quantization: Quantization = "none"

    def __post_init__(self) -> None:
        if self.quantization not in ("none", "nf4", "int8"):
            raise UserError("model.model.quantization", f"expected none, nf4 or int8, got {self.quantization!r}")
        if self.quantization != "none":
            if gguf_at(self.model_name_or_path, "model.model.model_name_or_path") is not None:
                raise UserError("model.model.quantization", f"expected none with a GGUF file, got {self.quantization}")
            check_installed()
        if self.revision is not None and is_adapter_folder(self.model_name_or_path):
            raise UserError(
                "model.model.revision",
                "expected no revision with a folder of adapters, whose adapter_config.json names that of their base, "
                f"got {self.revision!r}",
            )

    @property
    @override
    def name(self) -> str:
        return self.model_name_or_path

    @property
    @override
    def tokenizer_name(self) -> str:
        return self.model_name_or_path

    @property
    @override
    def commit(self) -> str | None:
        return model_commit(self.model_name_or_path, self.revision)

    @override
    def new_tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> Mapping[str, int]:
        """The tokens that the tokenizer in the model's folder lacks."""
        load = partial(read_tokenizer, self.model_name_or_path, self.revision, self.trust_remote_code)
        return new_tokens(tokenizer, load)

    @override
    def load(
        self, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype, sharding: Sharding | None = None
    ) -> PreTrainedModel:
        """Load the model; if the folder holds adapters, their base with the adapters merged into it."""
        from transformers import AutoModelForCausalLM

        name = self.model_name_or_path
        check_model_path(name)
        if (folder := adapters_at(name, self.commit or self.revision)) is not None:
            return self._load_merged(folder, tokenizer, dtype, sharding)
        wanted = dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        tokens = self.new_tokens(tokenizer)
        grow = partial(grow_vocabulary, rows=rows_needed(tokens)) if tokens else None
        if self.trust_remote_code:
            warn_of_code("model.model.trust_remote_code", name, self.revision)
        revision = self.commit or self.revision or "main"
        file: dict[str, Any] = {"revision": revision, "trust_remote_code": self.trust_remote_code}
        place, stored = name, None
        if (gguf := gguf_at(name)) is not None:
            sharding = None  # transformers reads the whole file; the caller shards the model
            place, stored = gguf.place, read_gguf(gguf, revision, wanted)
            file |= {"gguf_file": gguf.file}
        with report_load_errors(name, self.revision):
            config = read_config_of(place, **file)
        stored = stored or config.dtype
        reading: Any = contextlib.nullcontext({}) if sharding is None else sharding.loading(grow)
        with reading as options, report_load_errors(name, self.revision), quiet():
            model, loaded = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype=wanted,
                attn_implementation=self.attn_implementation,
                output_loading_info=True,
                **file,
                **(loading_options(self.quantization, wanted) if gguf is None else gguf_options()),
                **options,
            )
        check_complete(name, loaded)
        model.config.dtype = stored or wanted  # in which it is exported
        extend_vocabulary(model, tokens, sharding)
        return ready_to_train(without_repacking(model), self.gradient_checkpointing, self.compile)

    def _load_merged(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        dtype: torch.dtype,
        sharding: Sharding | None,
    ) -> PreTrainedModel:
        name, argument = self.model_name_or_path, "model.model.model_name_or_path"
        if sharding is not None or self.quantization != "none":
            raise UserError(
                argument,
                f"expected a model, got a folder of adapters, {name!r}, which cannot be merged into a base that is "
                "sharded or quantized; name the base here and the folder as model.lora.start",
            )
        config = read_config(folder, argument)
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
        if not base or adapters_at(base, revision) is not None:
            raise UserError(argument, f"expected adapters that name their base, but {name!r} names {base!r}")
        model = replace(self, model_name_or_path=base, revision=revision).load(tokenizer, dtype)
        return merge_folder(model, str(folder), argument)


def merge_folder(model: PreTrainedModel, folder: str, argument: str) -> PreTrainedModel:
    """Merge the adapters of a folder into a model, in place; errors name `argument`."""
    lora = replace(LoRA.from_folder(folder, argument), start=folder)
    adapted = copy.deepcopy(model)
    inject_adapters(adapted, lora)
    model.load_state_dict(merge_adapters(adapted.state_dict(), lora.scaling, stored_transposed(model)))
    return model


def source_of(model: ModelSource | str) -> ModelSource:
    """The source itself, or `PretrainedCausalLM` for a hub id or folder."""
    return PretrainedCausalLM(model) if isinstance(model, str) else model
