"""Rows for new tokens in a model that has been trained without them, initialized to the mean of the old rows.

This holds for the input embeddings, the output layer and its bias; tied weights stay tied. The logits are linear in the
output rows, so before training a new token's logit is the mean of the old tokens' logits (before a soft cap), and takes
almost no probability from them. Unused rows of the vocabulary are used first; the vocabulary grows only if they do not
suffice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_probsft.data.tokens.added_tokens import added_token_ids
from lit_probsft.errors import UserError
from lit_probsft.parallel.sharding import is_partitioned
from lit_probsft.parallel.transformers_loading import extend_with_zeros

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_probsft.parallel.sharding import Sharding

_CHUNK = 2**24  # numbers that are summed in double at a time


def new_tokens(tokenizer: Any, load_own: Callable[[], Any]) -> dict[str, int]:
    """Texts and ids of the tokens that were added to `tokenizer` and that a model does not know, by ascending id.

    Args:
        tokenizer: of the data.
        load_own: loads the tokenizer in the model's folder; called only if tokens were added. If it cannot be loaded,
            all added tokens are new.
    """
    added = {} if tokenizer is None else added_token_ids(tokenizer)
    if not added:
        return {}
    try:
        known = load_own().get_vocab()
    except UserError:
        known = {}
    return {text: id for text, id in added.items() if known.get(text) != id}


def check_trained(tokens: Mapping[str, int], lora: Any, argument: str = "model.lora.export") -> None:
    """Check that the rows of new tokens will be trained.

    Args:
        tokens: the new tokens.
        lora: the options of adapters, or None if all weights are trained.
        argument: the option or flag that asked for adapters without their base.

    Raises:
        UserError: with the option that trains them; or adapters without their base are asked for, which could not be
            loaded.
    """
    if tokens and lora is not None and not getattr(lora, "modules_to_save", None):
        raise UserError(
            "data.add_tokens",
            "expected the rows of new tokens to be trained, but model.lora freezes everything except the adapters: "
            f"{', '.join(map(repr, tokens))} would stay the mean of the other tokens; name the embeddings and the "
            "output layer in model.lora.modules_to_save, or train without model.lora",
        )
    if tokens and lora is not None and getattr(lora, "export", "merged") == "adapter":
        raise UserError(
            argument,
            "expected merged with data.add_tokens, because the base of the adapters has no rows for new tokens, got "
            "adapter",
        )


def check_rows_trained(tokens: Mapping[str, int], model: PreTrainedModel) -> None:
    """Check, after adapters have been injected, that embeddings and output layer are trained in full.

    Raises:
        UserError: one of them is not.
    """
    ends = zip(("the embeddings", "the output layer"), _embeddings(model), strict=True)
    frozen = [name for name, module in ends if not module.weight.requires_grad]
    if tokens and frozen:
        raise UserError(
            "model.lora.modules_to_save",
            f"expected embeddings and output layer with data.add_tokens, but {' and '.join(frozen)} would not be "
            "trained",
        )


def rows_needed(tokens: Mapping[str, int]) -> int:
    """The number of rows that a vocabulary needs for these tokens; 0 for none."""
    return max(tokens.values(), default=-1) + 1


def grow_vocabulary(model: PreTrainedModel, rows: int, sharding: Sharding | None = None) -> None:
    """Give embeddings and output layer at least `rows` rows, in place; the values of the new rows are undefined.

    Args:
        model: possibly on the meta device.
        rows: of the vocabulary.
        sharding: how the model is sharded; None if it is whole.

    Raises:
        UserError: embeddings and output layer are not an embedding and a linear layer.
    """
    model.tie_weights()
    inputs, outputs = _embeddings(model)
    if outputs.out_features >= rows:
        return
    kind = type(model).__name__
    if not isinstance(inputs, nn.Embedding) or not isinstance(outputs, nn.Linear):
        raise UserError(
            "data.add_tokens",
            f"expected a model whose vocabulary can grow, but {kind} keeps it in a {type(inputs).__name__} and a "
            f"{type(outputs).__name__}",
        )
    tied = outputs.weight is inputs.weight
    inputs.weight = _longer(inputs.weight, rows, sharding)
    outputs.weight = inputs.weight if tied else _longer(outputs.weight, rows, sharding)
    if outputs.bias is not None:
        outputs.bias = _longer(outputs.bias, rows, sharding)
    inputs.num_embeddings = outputs.out_features = rows
    model.config.get_text_config().vocab_size = rows
    if hasattr(model, "vocab_size"):
        model.vocab_size = rows


def extend_vocabulary(model: PreTrainedModel, tokens: Mapping[str, int], sharding: Sharding | None = None) -> None:
    """Add rows for new tokens and set them to the mean of the rows before them; the same on all ranks.

    Args:
        model: without an objective head; whole, or sharded when it was loaded.
        tokens: as `new_tokens` returns them.
        sharding: how the model is sharded; None if it is whole.

    Raises:
        UserError: as `grow_vocabulary`.
    """
    if not tokens:
        return
    grow_vocabulary(model, rows_needed(tokens), sharding)
    initialize_rows(model, tokens.values())
    rank_zero_info(
        f"data.add_tokens: {', '.join(map(repr, tokens))} new to the model, whose vocabulary now has "
        f"{_embeddings(model)[1].out_features} rows; each starts as the mean of the first {min(tokens.values())}"
    )


@torch.no_grad()
def initialize_rows(model: PreTrainedModel, ids: Collection[int]) -> None:
    """Set the rows of new tokens to the mean of the rows of the old ones, which are all ids below the lowest new one.

    Rows above belong to no token of the old tokenizer and do not count.
    """
    inputs, outputs = _embeddings(model)
    parameters = [inputs.weight, *([] if outputs.weight is inputs.weight else [outputs.weight])]
    if outputs.bias is not None:
        parameters.append(outputs.bias)
    for parameter in parameters:
        _initialize_rows(parameter, sorted(ids))


def _initialize_rows(parameter: Tensor, ids: Sequence[int]) -> None:
    from torch.distributed.tensor import DTensor

    if is_partitioned(parameter):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter[ids] = (_sum(parameter, ids[0]) / ids[0]).to(parameter.dtype)
        return
    if not isinstance(parameter.data, DTensor):
        parameter[ids] = (_sum(parameter, ids[0]) / ids[0]).to(parameter.dtype)
        return
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    whole, local = parameter.data, parameter.data.to_local()
    (rows, *_), (first, *_) = compute_local_shape_and_global_offset(whole.shape, whole.device_mesh, whole.placements)
    total = _sum(local, min(max(ids[0] - first, 0), rows)).to(whole.device_mesh.device_type)
    torch.distributed.all_reduce(total, group=whole.device_mesh.get_group())
    mine = [id - first for id in ids if first <= id < first + rows]
    if mine:
        local[mine] = (total / ids[0]).to(local)


def _sum(rows: Tensor, count: int) -> Tensor:
    """The sum of the first `count` rows, in double."""
    total = torch.zeros(rows.shape[1:], dtype=torch.float64, device=rows.device)
    for part in torch.split(rows[:count], max(1, _CHUNK // max(total.numel(), 1))):
        total += part.sum(0, dtype=torch.float64)
    return total


def _embeddings(model: Any) -> tuple[Any, Any]:
    """The input embeddings and the output layer."""
    return model.get_input_embeddings(), model.get_output_embeddings()


def _longer(parameter: Tensor, rows: int, sharding: Sharding | None) -> nn.Parameter:
    value = extend_with_zeros(parameter, rows) if sharding is None else sharding.extend(parameter, rows)
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=parameter.requires_grad)
