"""Installs the objective head as a model's output layer, and runs the forward pass through it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from lit_probsft.errors import UserError
from lit_probsft.head.layer import HeadRequest, HiddenRequest, ObjectiveHead
from lit_probsft.head.logits import Outputs
from lit_probsft.head.loss import HeadOutput
from lit_probsft.model.generation import stop_tokens
from lit_probsft.model.modes import evaluation_mode
from lit_probsft.model.packing import Packs
from lit_probsft.parallel.sharding import is_partitioned

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def logit_transform(config: Any) -> tuple[float, float | None]:
    """How a model of this configuration changes its output layer's result: (factor, soft cap).

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma 2 and 3 cap by a tanh.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    return scale, getattr(text, "final_logit_softcapping", None)


def output_layer(model: Any) -> Any:
    """The output layer of a model that may be any module.

    Raises:
        UserError: the module has none.
    """
    get_output = getattr(model, "get_output_embeddings", None)
    layer = get_output() if get_output is not None else None
    if layer is None:
        raise UserError(
            "model", f"expected a causal language model with an output layer, but {type(model).__name__} has none"
        )
    return layer


def install_head(model: PreTrainedModel) -> ObjectiveHead:
    """Turn the model's output layer into an `ObjectiveHead`, with the same parameters. A second call changes nothing.

    Raises:
        UserError: the output layer is missing or not a plain linear layer; or as `check_head`.
    """
    layer, kind = output_layer(model), type(model).__name__
    if isinstance(layer, ObjectiveHead):
        return layer
    sharded = type(layer).__name__ == "FSDPLinear"  # the class that FSDP2 derives
    if type(layer) is not nn.Linear and not sharded:
        raise UserError(
            "model",
            f"expected a plain torch.nn.Linear as output layer, but {kind} has a {type(layer).__name__}",
        )
    scale, soft_cap = logit_transform(model.config)
    head = ObjectiveHead.replacing(layer, logit_scale=scale, soft_cap=soft_cap)
    if not (head.weight.is_meta or is_partitioned(head.weight)):
        check_head(model)
    return head


def check_head(model: PreTrainedModel) -> None:
    """Check that a model is causal and changes its logits only as `logit_transform` says, by running it.

    `install_head` calls it if it can. A model partitioned by ZeRO-3 cannot run before DeepSpeed's engine exists.

    Raises:
        UserError: the model is not causal, or known logits come out of its forward changed in another way.
    """
    head = model.get_output_embeddings()
    device = next((buffer.device for buffer in model.buffers() if buffer.device.type != "cpu"), head.weight.device)
    probe = torch.linspace(-3, 3, head.out_features, device=device, dtype=torch.float32).reshape(1, 1, -1)
    hidden: list[Tensor] = []

    def answer(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> Tensor:
        hidden.append(inputs[0].detach()[0, 0].float())
        return probe.clone()

    hook = head.register_forward_hook(answer)
    try:
        with torch.no_grad(), evaluation_mode(model):
            for last in (0, 1):
                seen = model(input_ids=torch.tensor([[0, last]], device=device), use_cache=False).logits
    finally:
        hook.remove()
    if not all(state.isfinite().all() for state in hidden):
        raise UserError(
            "model",
            f"expected finite hidden states, {type(model).__name__} computes NaN or infinity for two tokens: its "
            "weights are damaged, or too large for this precision",
        )
    if not torch.allclose(hidden[0], hidden[1], rtol=1e-3, atol=1e-4):
        raise UserError(
            "model", f"expected a causal language model, but in {type(model).__name__} a token attends to later tokens"
        )
    expected = probe * head.logit_scale
    if head.soft_cap is not None:
        expected = head.soft_cap * torch.tanh(expected / head.soft_cap)
    if seen.shape != expected.shape or not torch.allclose(seen.float(), expected, rtol=1e-5, atol=1e-5):
        raise UserError(
            "model",
            f"{type(model).__name__} changes its logits after the output layer in a way that the objective head "
            "does not know (it knows a factor, `logit_scale` or `logits_scaling`, and a soft cap, "
            "`final_logit_softcapping`)",
        )


def forward_with_objective(
    model: PreTrainedModel,
    input_ids: Tensor,
    request: HeadRequest,
    attention_mask: Tensor | None = None,
    packs: Packs | None = None,
) -> tuple[HeadOutput, Tensor, Tensor | None]:
    """One forward pass of the whole model, in which the head answers `request` instead of returning logits.

    Args:
        model: a model with an installed head.
        input_ids: (B, T), padded on the right. In a causal model no real position attends to the padding, so the mask
            is passed only to a mixture of experts, whose auxiliary loss would count the padding.
        request: labels, objective and normalizer.
        attention_mask: (B, T).
        packs: the boundaries of documents that share rows.

    Returns:
        The head's output; the loss as the model returns it (the same value, with the hooks of sharding strategies on
        it); and the auxiliary loss of a mixture of experts times its coefficient, or None.
    """
    request, output = _run(model, input_ids, request, attention_mask, packs)
    assert request.output is not None
    auxiliary = getattr(output, "aux_loss", None)
    if auxiliary is not None:
        auxiliary = auxiliary * getattr(model.config.get_text_config(), "router_aux_loss_coef", 0.0)
    return request.output, output.logits.reshape(()) / model.get_output_embeddings().logit_scale, auxiliary


@torch.no_grad()
def outputs_of(
    model: PreTrainedModel,
    input_ids: Tensor,
    labels: Tensor,
    attention_mask: Tensor | None = None,
    packs: Packs | None = None,
) -> Outputs:
    """A model's outputs at the supervised positions, in row-major order, without gradient and without dropout.

    The arguments are those of `forward_with_objective`, with labels (B, T).
    """
    with evaluation_mode(model):
        request, _ = _run(model, input_ids, HiddenRequest(labels), attention_mask, packs)
    assert request.outputs is not None
    return request.outputs


_Request = TypeVar("_Request", HeadRequest, HiddenRequest)


def _run(
    model: PreTrainedModel, input_ids: Tensor, request: _Request, attention_mask: Tensor | None, packs: Packs | None
) -> tuple[_Request, Any]:
    """Run the model. Returns the answered request and the output of the model's forward."""
    head = install_head(model)
    config = model.config.get_text_config()
    router = bool(getattr(config, "output_router_logits", False))
    if packs is None:
        arguments = {"attention_mask": attention_mask if router else None, "use_cache": False}
    elif router and attention_mask is not None:
        # transformers ignores the documents' boundaries if there is a mask, so the padding is removed instead.
        real = attention_mask.bool()
        request = replace(request, labels=request.labels[real].unsqueeze(0))
        if isinstance(request, HeadRequest) and request.token_weight is not None:
            request.token_weight = request.token_weight[real].unsqueeze(0)
        input_ids, packs = input_ids[real].unsqueeze(0), packs.without_padding(real)
    if packs is not None:
        arguments = packs.arguments(config)
    with head.answering(request), _no_soft_cap(config):
        return request, model(input_ids=input_ids, **arguments)


@contextlib.contextmanager
def _no_soft_cap(config: Any) -> Iterator[None]:
    """Within this block, the model applies no soft cap: the head has applied it and returns a loss, not logits."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is None:
        yield
        return
    config.final_logit_softcapping = None
    try:
        yield
    finally:
        config.final_logit_softcapping = cap


def stop_generation_at(model: PreTrainedModel, token: int) -> None:
    """Make `generate` stop at `token` as well as at its present stop tokens. The setting is saved with the model."""
    stops = list(dict.fromkeys([*stop_tokens(model), token]))
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
