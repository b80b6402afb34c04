"""Loading the model of a module, with objective head, adapters and reference, and checking it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from lit_probsft.data.tokens.added_tokens import added_token_ids
from lit_probsft.model.adapter_base import describe_base
from lit_probsft.model.fingerprint import fingerprint
from lit_probsft.model.forward import check_head, install_head, output_layer, stop_generation_at
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.model.packing import check_packing, takes_boundaries
from lit_probsft.model.vocabulary import check_rows_trained, check_trained, extend_vocabulary
from lit_probsft.parallel.sharding import Sharding
from lit_probsft.parallel.strategies import DeepSpeed, check_supported, sharding_of
from lit_probsft.training.compatibility import check_adapters
from lit_probsft.training.lightning_internals import trainer_of

if TYPE_CHECKING:
    from lit_probsft.training.module import ProbSFTModule


def load_model(module: ProbSFTModule) -> None:
    """Load the module's model and its reference, once, sharded as the trainer's strategy asks.

    Call it after the setup of the data module, whose ids and lengths the model is checked for.

    Raises:
        UserError: strategy, tokens or data do not fit the model.
    """
    strategy, data = module.trainer.strategy, module.datamodule
    check_supported(strategy)
    check_adapters(module)
    sharding = sharding_of(strategy)
    dtype = torch.bfloat16 if str(module.trainer.precision) == "bf16-true" else torch.float32
    tokenizer = getattr(data, "tokenizer", None)
    if module.source is not None and module.model is None:
        tokens = dict(module.source.new_tokens(tokenizer))
        check_trained(tokens, module.lora)
        module.new_tokens = tokens
        module.model = with_head(module, module.source.load(tokenizer, dtype, sharding), sharding, tokens)
        module.frozen_reference.load(module, dtype, sharding)
    else:
        if module.source is None:  # handed in, and perhaps trained before by this module
            tokens = {text: id for text, id in added_token_ids(tokenizer).items() if text not in module.new_tokens}
            check_trained(tokens, module.lora)
            extend_vocabulary(module.model, tokens)
            module.new_tokens.update(tokens)
        module.frozen_reference.load(module, dtype, sharding)  # which copies the model before it is sharded
        module.model = module.model if sharding is None else sharding.shard(module.model)
    if isinstance(strategy, DeepSpeed):  # which writes the weights itself
        strategy.exclude_frozen_parameters = module.base_of_adapters is not None
    if (end := getattr(data, "end_of_turn_id", None)) is not None:
        stop_generation_at(module.model, end)
    splits: dict[str, Any] = getattr(data, "report", {})
    lengths = [split.get("max_length", 0) for name, split in splits.items() if name != "predict"]
    module.check_fits(getattr(data, "max_token_id", -1), max(lengths, default=0))


def with_head(
    module: ProbSFTModule, model: Any, sharding: Sharding | None = None, new_tokens: Mapping[str, int] | None = None
) -> Any:
    """The model with the module's adapters and an objective head."""
    output_layer(model)  # adapters look for it
    model = model if sharding is None else sharding.shard(model)
    if module.lora is not None:
        if module.source is not None and not new_tokens:  # a base with new rows cannot be loaded again
            trainer = trainer_of(module)
            device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
            module.base_of_adapters = describe_base(module.source, model.dtype, fingerprint(model, device))
            module.strict_loading = module.base_of_adapters is None
        inject_adapters(model, module.lora, sharding)
        check_rows_trained(new_tokens or {}, model)
        if sharding is not None:
            sharding.shard_adapters(model)
    head = install_head(model)
    if module.logits_budget_mb is not None:
        head.chunk_size = max(1, int(module.logits_budget_mb * 2**20 / (4 * head.out_features)))
    return model


def check_in_place(module: ProbSFTModule) -> None:
    """The checks that need the model on its device and, with ZeRO-3, the engine around it.

    Raises:
        UserError: the head or packing does not work with the model.
    """
    strategy, frozen = module.trainer.strategy, module.frozen_reference.loaded
    if isinstance(strategy, DeepSpeed) and strategy.zero_stage_3:
        check_head(module.model)
    if getattr(module.datamodule, "packing", False):
        # In full precision if possible; flash attention supports 16 bits only.
        rounded = takes_boundaries(module.model.config.get_text_config())
        with module.trainer.precision_plugin.forward_context() if rounded else contextlib.nullcontext():
            for model in dict.fromkeys([module.model, *([frozen.model] if frozen else [])]):
                check_packing(model)
