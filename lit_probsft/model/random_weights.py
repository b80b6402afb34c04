"""Models with random weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from lit_probsft.errors import UserError, near_matches
from lit_probsft.model.config_checks import check_sizes
from lit_probsft.model.source import DTypeName, ModelSource, ready_to_train
from lit_probsft.parallel.seeds import run_seed
from lit_probsft.parallel.sharding import Sharding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CONFIG = "model.model.config"


@dataclass(frozen=True)
class RandomCausalLM(ModelSource):
    """A model built from a configuration, with random weights: the weak end of the capability continuum.

    Args:
        config: fields of the transformers configuration, with `model_type`. Vocabulary size and special tokens default
            to the tokenizer's.
        seed: of the weights; None is the run's seed. The same seed gives the same weights, whatever else is random,
            sharded or not.
        dtype: as in `PretrainedCausalLM`.
        attn_implementation: as in `PretrainedCausalLM`.
        gradient_checkpointing: as in `PretrainedCausalLM`.
        compile: as in `PretrainedCausalLM`.
    """

    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    dtype: DTypeName = "auto"
    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", run_seed(self.seed))

    @property
    @override
    def name(self) -> str:
        return f"{self.config.get('model_type', '?')} from random weights (seed {self.seed})"

    @override
    def load(
        self, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype, sharding: Sharding | None = None
    ) -> PreTrainedModel:
        """Draw the weights of the whole model on the CPU."""
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM
        from transformers.modeling_utils import set_zero3_state

        kind, fields = self._checked_config(tokenizer)
        dtype = dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        kwargs = {} if self.attn_implementation is None else {"attn_implementation": self.attn_implementation}
        try:
            # On the meta device, building draws no numbers; set_zero3_state keeps transformers from partitioning.
            with torch.device("meta"), set_zero3_state():
                model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields), dtype=dtype, **kwargs)
            model.to_empty(device="cpu")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(run_seed(self.seed))
                model.init_weights()
        except Exception as error:  # the exceptions of transformers' configurations have no common base class
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            reason = re.sub(r"^\w+Error: ", "", lines[-1] if "alidation error" in lines[0] else lines[0])
            on_attention = re.search("attn_implementation=|FlashAttention", reason)
            argument = "model.model.attn_implementation" if on_attention else _CONFIG
            got = repr(self.attn_implementation if on_attention else self.config)
            raise UserError(argument, f"transformers cannot build a {kind} model with {got}: {reason}") from error
        return ready_to_train(model, self.gradient_checkpointing, self.compile)

    def _checked_config(self, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, dict[str, Any]]:
        """The model type and the other fields of the configuration, with those of the tokenizer."""
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

        fields = dict(self.config)
        kind = fields.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            got = "none" if kind is None else f"{kind!r}.{near_matches(str(kind), CONFIG_MAPPING.keys())}"
            raise UserError(f"{_CONFIG}.model_type", f"expected a model type of transformers, got {got}")
        if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(f"{_CONFIG}.model_type", f"expected the type of a causal language model, got {kind!r}")
        if tokenizer is not None:
            fields.setdefault("vocab_size", len(tokenizer))
            for token in ("pad", "bos", "eos"):
                fields.setdefault(f"{token}_token_id", getattr(tokenizer, f"{token}_token_id"))
            if fields["vocab_size"] < len(tokenizer):
                raise UserError(
                    f"{_CONFIG}.vocab_size",
                    f"expected at least {len(tokenizer)}, the tokenizer's vocabulary, got {fields['vocab_size']}",
                )
        known = CONFIG_MAPPING[kind]()
        for name in fields:
            if not hasattr(known, name):
                hint = near_matches(name, known.to_dict())
                raise UserError(f"{_CONFIG}.{name}", f"{type(known).__name__} has no field {name!r}.{hint}")
        check_sizes(known, self.config, _CONFIG)
        return kind, fields
