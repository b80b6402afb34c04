"""Where the causal language model comes from: the hub, a folder, or random weights."""

from __future__ import annotations

import contextlib
import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lit_probsft.data.tokens.tokenizers import read_tokenizer
from lit_probsft.errors import UserError, near_matches
from lit_probsft.model.adapters import merged, stored_transposed
from lit_probsft.model.loading import check_complete, check_place, report_load_errors
from lit_probsft.model.lora import LoRA
from lit_probsft.model.quantization import Quantization, check_installed, loading_options, quiet, settled
from lit_probsft.model.vocabulary import extend, grow, new_to, rows_for
from lit_probsft.parallel.sharding import Sharding, decoder_layers, global_numel
from lit_probsft.storage.adapter_folder import adapters_at, is_adapter_folder, read_config
from lit_probsft.storage.hub import model_commit, warn_of_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTypeName = Literal["auto", "float32", "bfloat16", "float64"]


@dataclass(frozen=True)
class ModelSource(ABC):
    """How a causal language model is obtained; members are frozen dataclasses, named in a config by class path."""

    @abstractmethod
    def load(
        self, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype, sharding: Sharding | None = None
    ) -> PreTrainedModel:
        """The model in training mode.

        Args:
            tokenizer: gives a randomly initialized model its vocabulary and special tokens.
            dtype: of the weights, unless the source names its own.
            sharding: how the trainer's strategy cuts models; None where every process holds the whole. With it no
                process ever holds the whole model.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """A few words for the model card and the run's record."""

    @property
    def tokenizer_name(self) -> str | None:
        """Hub id or folder where the model's own tokenizer lies, if it has one."""
        return None

    @property
    def commit(self) -> str | None:
        """The commit that is read, of a model on the hub."""
        return None

    def new_tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> Mapping[str, int]:
        """Ids of the tokens that were added to `tokenizer` and that the model has not been trained with, by their
        texts. A model that has not been trained at all knows no token better than another: none."""
        return {}


@dataclass(frozen=True)
class PretrainedCausalLM(ModelSource):
    """A model from the hub or a local folder in Hugging Face's format.

    Args:
        model_name_or_path: hub id or folder.
        revision: branch, tag or commit on the hub; of adapters there their own, since they name that of their base.
        dtype: of the weights; `auto` is float32, the master weights, unless the trainer's precision is `bf16-true`.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2` ..., as transformers names them; None lets it choose.
        gradient_checkpointing: recompute each decoder layer in backward; the head is never recomputed.
        compile: run each decoder layer through torch.compile.
        trust_remote_code: run code that lies beside the weights, for a model that transformers does not know.
        quantization: `nf4` or `int8` keeps the frozen matrices of the decoder layers in 4 or 8 bits, beside which
            adapters are trained (QLoRA); `none` as `dtype` says. Not with strategies that cut the model.
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
            check_installed()
        if self.revision is not None and is_adapter_folder(self.model_name_or_path):
            raise UserError(
                "model.model.revision",
                "expected none beside a folder of adapters, whose adapter_config.json names "
                f"that of their base, got {self.revision!r}",
            )

    @property
    def name(self) -> str:
        """The hub id or folder."""
        return self.model_name_or_path

    @property
    def tokenizer_name(self) -> str:
        """The same place."""
        return self.model_name_or_path

    @property
    def commit(self) -> str | None:
        """As the hub tells it."""
        return model_commit(self.model_name_or_path, self.revision)

    def new_tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> Mapping[str, int]:
        """Those that the tokenizer beside the weights lacks."""
        return new_to(tokenizer, lambda: read_tokenizer(self.model_name_or_path, self.revision, self.trust_remote_code))

    def load(
        self, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype, sharding: Sharding | None = None
    ) -> PreTrainedModel:
        """The pretrained model; of adapters their base with the adapters merged into it."""
        from transformers import AutoModelForCausalLM

        place = self.model_name_or_path
        check_place(place)
        if (folder := adapters_at(place, self.commit or self.revision)) is not None:
            return self._merged(folder, tokenizer, dtype, sharding)
        wanted = dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        tokens = self.new_tokens(tokenizer)
        longer = partial(grow, rows=rows_for(tokens)) if tokens else None
        if self.trust_remote_code:
            warn_of_code("model.model.trust_remote_code", place, self.revision)
        with report_load_errors(place, self.revision):
            reading: Any = contextlib.nullcontext({}) if sharding is None else sharding.loading(longer)
            with reading as options, quiet():
                model, loaded = AutoModelForCausalLM.from_pretrained(
                    place,
                    revision=self.commit or self.revision or "main",
                    dtype=wanted,
                    attn_implementation=self.attn_implementation,
                    trust_remote_code=self.trust_remote_code,
                    output_loading_info=True,
                    **loading_options(self.quantization, wanted),
                    **options,
                )
            check_complete(place, loaded)
        extend(model, tokens, sharding)
        return _prepared(settled(model), self.gradient_checkpointing, self.compile)

    def _merged(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
        dtype: torch.dtype,
        sharding: Sharding | None,
    ) -> PreTrainedModel:
        place, argument = self.model_name_or_path, "model.model.model_name_or_path"
        if sharding is not None or self.quantization != "none":
            raise UserError(
                argument,
                f"expected a model, got a folder of adapters, {place!r}, which cannot be merged into a "
                "base that is cut or quantized; name the base here and the folder as model.lora.start",
            )
        named = read_config(folder, argument)
        base, revision = named.get("base_model_name_or_path"), named.get("revision")
        if not base or adapters_at(base, revision) is not None:
            raise UserError(argument, f"expected adapters that name their base, {place!r} names {base!r}")
        model = replace(self, model_name_or_path=base, revision=revision).load(tokenizer, dtype)
        lora = replace(LoRA.of(str(folder), argument), start=str(folder))
        return without_adapters(model, lora)


def without_adapters(model: PreTrainedModel, lora: LoRA) -> PreTrainedModel:
    """A model with the adapters that `lora.start` holds merged into it, as if it had been read so."""
    adapted = copy.deepcopy(model)
    lora.inject(adapted)
    weights = merged(adapted.state_dict(), lora.scaling, stored_transposed(model))
    model.load_state_dict(weights)
    return model


@dataclass(frozen=True)
class RandomCausalLM(ModelSource):
    """A model built from a configuration, with random weights: the weak end of the capability continuum.

    Args:
        config: fields of the transformers configuration, `model_type` among them. Vocabulary size and special tokens
            are the tokenizer's where they are not given.
        seed: of the weights; the same seed gives the same weights whatever else is random, sharded or not.
        dtype: as in `PretrainedCausalLM`.
        attn_implementation: as there.
        gradient_checkpointing: as there.
        compile: as there.
    """

    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: DTypeName = "auto"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False

    @property
    def name(self) -> str:
        """Type and seed."""
        return f"{self.config.get('model_type', '?')} from random weights (seed {self.seed})"

    def load(
        self, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype, sharding: Sharding | None = None
    ) -> PreTrainedModel:
        """The model with freshly drawn weights."""
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
        from transformers.modeling_utils import set_zero3_state

        fields = dict(self.config)
        kind = fields.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            got = "none" if kind is None else f"{kind!r}.{near_matches(str(kind), CONFIG_MAPPING.keys())}"
            raise UserError("model.model.config.model_type", f"expected a model type of transformers, got {got}")
        if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError("model.model.config.model_type", f"expected a causal language model's, got {kind!r}")
        if tokenizer is not None:
            fields.setdefault("vocab_size", len(tokenizer))
            for token in ("pad", "bos", "eos"):
                fields.setdefault(f"{token}_token_id", getattr(tokenizer, f"{token}_token_id"))
            if fields["vocab_size"] < len(tokenizer):
                raise UserError(
                    "model.model.config.vocab_size",
                    f"expected at least {len(tokenizer)}, the tokenizer's vocabulary, got {fields['vocab_size']}",
                )
        known = CONFIG_MAPPING[kind]()
        for name in fields:
            if not hasattr(known, name):
                hint = near_matches(name, known.to_dict())
                raise UserError(f"model.model.config.{name}", f"expected a field of {type(known).__name__}.{hint}")
        dtype = dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        kwargs = {} if self.attn_implementation is None else {"attn_implementation": self.attn_implementation}
        try:
            # On the meta device building draws no numbers; set_zero3_state keeps transformers from partitioning.
            with torch.device("meta"), set_zero3_state():
                model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields), dtype=dtype, **kwargs)
            model.to_empty(device="cpu")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model.init_weights()
        except Exception as error:  # transformers' checks of its configurations share no base class
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            said = lines[-1] if "alidation error" in lines[0] else lines[0]
            said = re.sub(r"^\w+Error: ", "", said)
            part = "attn_implementation" if re.search("attn_implementation=|FlashAttention", said) else "config"
            given = self.attn_implementation if part == "attn_implementation" else self.config
            raise UserError(
                f"model.model.{part}", f"expected what {kind} can be built from, got {given!r}: {said}"
            ) from error
        return _prepared(model, self.gradient_checkpointing, self.compile)


def _prepared(model: PreTrainedModel, gradient_checkpointing: bool, compile_layers: bool) -> PreTrainedModel:
    # Torch gives the padding token's embedding no gradient. Padding is masked and has none anyway; but where the token
    # that ends turns pads too, it is a token like others.
    model.get_input_embeddings().padding_idx = None
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if compile_layers:
        # The forward alone: hooks that gather a layer's weights, and recomputation, stay around it.
        for layer in decoder_layers(model):
            layer.forward = torch.compile(layer.forward)
    return model.train()


def source_of(model: ModelSource | str) -> ModelSource:
    """A string stands for `PretrainedCausalLM` of that hub id or folder."""
    return PretrainedCausalLM(model) if isinstance(model, str) else model


def describe(model: PreTrainedModel) -> Mapping[str, Any]:
    """Type and size of a model, for the run's record."""
    return {
        "architecture": type(model).__name__,
        "parameters": sum(global_numel(p) for p in model.parameters()),
        "trainable_parameters": sum(global_numel(p) for p in model.parameters() if p.requires_grad),
    }
