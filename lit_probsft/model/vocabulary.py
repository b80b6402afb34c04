"""Rows for new tokens in a model that has been trained without them: each begins as the mean of the old rows.

Input embeddings, output layer and its bias alike; what is tied stays tied. As the logits are linear in the output rows,
a new token's logit is the mean of the old tokens' before training (before a soft cap), which takes next to nothing from
any of them. Rows that the vocabulary has to spare are given away first and begin the same way; the vocabulary grows
only where they do not suffice.
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

_CHUNK = 2**24  # numbers that are added up in double at a time


def new_to(tokenizer: Any, own: Callable[[], Any]) -> dict[str, int]:
    """Ids of the tokens that were added to `tokenizer` and that a model does not know, by their texts, ascending.

    Args:
        tokenizer: of the data.
        own: loads the tokenizer that lies beside the model's weights; asked only where tokens were added. One that
            cannot be had knows none of them.
    """
    added = {} if tokenizer is None else added_token_ids(tokenizer)
    if not added:
        return {}
    try:
        known = own().get_vocab()
    except UserError:
        known = {}
    return {text: id for text, id in added.items() if known.get(text) != id}


def check_trained(tokens: Mapping[str, int], lora: Any, argument: str = "model.lora.export") -> None:
    """Refuse to add tokens whose rows would stay as they begin.

    Args:
        tokens: new to the model.
        lora: adapters, or None where all weights are trained.
        argument: how adapters alone were asked for.

    Raises:
        UserError: naming what trains them, or that adapters alone could not be loaded.
    """
    if tokens and lora is not None and not getattr(lora, "modules_to_save", None):
        raise UserError(
            "data.add_tokens",
            "expected the rows of new tokens to be trained, but model.lora freezes all of the model "
            f"but its adapters: {', '.join(map(repr, tokens))} would stay the mean of the others; name the embeddings "
            "and the output layer in model.lora.modules_to_save, or train without model.lora",
        )
    if tokens and lora is not None and getattr(lora, "export", "merged") == "adapter":
        raise UserError(
            argument,
            "expected merged beside data.add_tokens, since the model that the adapters belong to "
            "has no rows for them, got adapter",
        )


def check_rows_trained(tokens: Mapping[str, int], model: PreTrainedModel) -> None:
    """The same once the adapters are there: are embeddings and output layer among what is trained whole?

    Raises:
        UserError: one of them is not.
    """
    ends = zip(("the embeddings", "the output layer"), _ends(model), strict=True)
    frozen = [name for name, module in ends if not module.weight.requires_grad]
    if tokens and frozen:
        raise UserError(
            "model.lora.modules_to_save",
            "expected it to name embeddings and output layer beside data.add_tokens, "
            f"{' and '.join(frozen)} would not be trained",
        )


def rows_for(tokens: Mapping[str, int]) -> int:
    """How many rows a vocabulary needs to hold these tokens; 0 for none."""
    return max(tokens.values(), default=-1) + 1


def grow(model: PreTrainedModel, rows: int, sharding: Sharding | None = None) -> None:
    """Give embeddings and output layer at least so many rows, in place; what is in the new ones is left open.

    Args:
        model: it may lie on the meta device.
        rows: of the vocabulary.
        sharding: how the model is cut; None where it is whole.

    Raises:
        UserError: the model keeps them in another way than in an embedding and a linear layer.
    """
    model.tie_weights()
    inputs, outputs = _ends(model)
    if outputs.out_features >= rows:
        return
    kind = type(model).__name__
    if not isinstance(inputs, nn.Embedding) or not isinstance(outputs, nn.Linear):
        raise UserError(
            "data.add_tokens",
            f"expected a model whose vocabulary can grow, that of {kind} is kept in a "
            f"{type(inputs).__name__} and a {type(outputs).__name__}",
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


def extend(model: PreTrainedModel, tokens: Mapping[str, int], sharding: Sharding | None = None) -> None:
    """Room for new tokens, and their rows at the mean of those before them; the same on all ranks.

    Args:
        model: without an objective head, whole, or as `sharding` has read it.
        tokens: as `new_to` gives them.
        sharding: how the model is cut.

    Raises:
        UserError: as `grow`.
    """
    if not tokens:
        return
    grow(model, rows_for(tokens), sharding)
    begin(model, tokens.values())
    rank_zero_info(
        f"data.add_tokens: {', '.join(map(repr, tokens))} new to the model, whose vocabulary has "
        f"{_ends(model)[1].out_features} rows; each begins as the mean of the {min(tokens.values())} before"
    )


@torch.no_grad()
def begin(model: PreTrainedModel, ids: Collection[int]) -> None:
    """Set the rows of new tokens to the mean of the rows before them: the ids below the lowest, which the tokenizer had
    before; rows beyond those are nobody's and do not count."""
    inputs, outputs = _ends(model)
    parameters = [inputs.weight, *([] if outputs.weight is inputs.weight else [outputs.weight])]
    if outputs.bias is not None:
        parameters.append(outputs.bias)
    for parameter in parameters:
        _begin_rows(parameter, sorted(ids))


def _begin_rows(parameter: Tensor, ids: Sequence[int]) -> None:
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


def _ends(model: Any) -> tuple[Any, Any]:
    """Input embeddings and output layer."""
    return model.get_input_embeddings(), model.get_output_embeddings()


def _longer(parameter: Tensor, rows: int, sharding: Sharding | None) -> nn.Parameter:
    value = extend_with_zeros(parameter, rows) if sharding is None else sharding.extend(parameter, rows)
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=parameter.requires_grad)
