"""Options for generating answers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_probsft.errors import UserError, check_range, errors_within

_PENALTIES = {
    "repetition_penalty": "RepetitionPenaltyLogitsProcessor",
    "no_repeat_ngram_size": "NoRepeatNGramLogitsProcessor",
    "bad_words_ids": "NoBadWordsLogitsProcessor",
    "suppress_tokens": "SuppressTokensLogitsProcessor",
}
_FILTERS = {
    "top_k": "TopKLogitsWarper",
    "min_p": "MinPLogitsWarper",
    "typical_p": "TypicalLogitsWarper",
    "epsilon_cutoff": "EpsilonLogitsWarper",
    "eta_cutoff": "EtaLogitsWarper",
}
"""Classes of transformers that apply a field of `generation_config`: to all logits, and to those that are sampled."""

_SAMPLING = {"do_sample", "temperature", "top_p", "top_h", *_FILTERS}
_HARMLESS = {
    *("eos_token_id", "pad_token_id", "bos_token_id"),
    *("max_length", "max_new_tokens", "use_cache", "cache_implementation", "transformers_version"),
}


def stop_tokens(model: Any) -> list[int]:
    """The ids of the tokens that end an answer, from the model's `generation_config`."""
    known = model.generation_config.eos_token_id
    return [int(id) for id in (known if isinstance(known, list) else [known]) if id is not None]


def own_processors(model: Any, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """The penalties and the filters of the model's `generation_config`, as transformers' logits processors by field.

    Args:
        model: a `PreTrainedModel`.
        device: of the logits.
    """
    import transformers

    fields = model.generation_config.to_diff_dict()

    def build(name: str, kind: type) -> Any:
        options = {"device": device} if "device" in inspect.signature(kind).parameters else {}
        return kind(fields[name], **options)

    penalties, filters = (
        {name: build(name, getattr(transformers, kind)) for name, kind in kinds.items() if fields.get(name)}
        for kinds in (_PENALTIES, _FILTERS)
    )
    return penalties, filters


def report_unused(model: Any, *, samples: bool, kept: Collection[str] = ()) -> None:
    """Name the fields of the model's `generation_config` that would change answers and are not used.

    Args:
        model: a `PreTrainedModel`.
        samples: answers are sampled.
        kept: names of fields that are used.
    """
    fields = model.generation_config.to_diff_dict()
    quiet = _HARMLESS | (set() if samples else _SAMPLING) | set(kept)
    unused = {name: value for name, value in fields.items() if value and name not in quiet and name[0] != "_"}
    if unused:
        named = ", ".join(f"{name} {value}" for name, value in unused.items())
        rank_zero_info(f"not used from generation_config.json: {named[:300]}")


def check_sampling(temperature: float, top_p: float) -> None:
    """Refuse numbers that no distribution has.

    Raises:
        UserError: names the number.
    """
    if not 0 <= temperature < math.inf:
        raise UserError("temperature", f"expected 0 (greedy) or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise UserError("top_p", f"expected a number above 0 and at most 1, got {top_p}")


@dataclass(frozen=True)
class Generation:
    """How `predict` generates answers.

    Args:
        max_new_tokens: the most tokens of an answer, at least 1.
        temperature: of sampling; 0 is greedy.
        top_p: share of the probability mass that is sampled from (nucleus sampling), above 0 and at most 1.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        with errors_within("model.generation"):
            check_range("max_new_tokens", self.max_new_tokens, 1, math.inf)
            check_sampling(self.temperature, self.top_p)

    def report_unused(self, model: Any) -> None:
        """Name the fields of the model's `generation_config` that would change answers and are not used."""
        report_unused(model, samples=self.temperature > 0)

    def answer(
        self, model: Any, prompts: Tensor, attention_mask: Tensor, *, pad_token_id: int | None, **options: Any
    ) -> Tensor:
        """Answer prompts with these options alone.

        Of the model's `generation_config`, only the tokens that end an answer count. Its other fields, such as a
        repetition penalty, would change what the model answers at temperature 0.

        Args:
            model: a `PreTrainedModel`.
            prompts: (B, T), padded on the left.
            attention_mask: (B, T).
            pad_token_id: follows answers that end before others; a token that ends answers takes its place if it is
                None or the model has no row for it.
            options: more arguments of transformers' `generate`.

        Returns:
            (B, T + T'): prompts and answers.
        """
        from transformers import GenerationConfig

        own = model.generation_config
        if pad_token_id is None or not 0 <= pad_token_id < model.get_output_embeddings().out_features:
            pad_token_id = next(iter(stop_tokens(model)), None)
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.temperature else {}
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            eos_token_id=own.eos_token_id,
            pad_token_id=pad_token_id,
            **sampling,
        )
        model.generation_config = config  # `generate` fills the fields that are not set from it
        try:
            produced: Tensor = model.generate(
                prompts, attention_mask=attention_mask, generation_config=config, **options
            )
        finally:
            model.generation_config = own
        return produced
