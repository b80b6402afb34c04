"""Model sources, and the head in architectures that change their logits in different ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import architectures
from benchmarks.architectures import SMALL
from lit_probsft.errors import UserError
from lit_probsft.head.layer import HeadRequest, ObjectiveHead
from lit_probsft.model import PretrainedCausalLM, RandomCausalLM
from lit_probsft.model.forward import forward_with_objective, install_head
from lit_probsft.model.lora import LoRA
from lit_probsft.objectives import NLL, LabelSmoothing, Objective
from lit_probsft.run.export import in_export_dtype
from lit_probsft.training.module import ProbSFTModule
from tests import tiny

GPT2 = {
    "vocab_size": 61,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2, tied": {**SMALL, "model_type": "qwen2", "tie_word_embeddings": True},
    "gemma2 (soft cap)": {**SMALL, "model_type": "gemma2", "final_logit_softcapping": 2.0, "head_dim": 8},
    "granite (divides)": {**SMALL, "model_type": "granite", "logits_scaling": 4.0},
    "cohere (multiplies)": {**SMALL, "model_type": "cohere", "logit_scale": 0.3},
    "gpt2": {**GPT2, "model_type": "gpt2"},
    "phi (bias)": {**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, "model_type": "phi"},
}


def built(name: str, dtype: torch.dtype = torch.float64) -> Any:
    return RandomCausalLM({"model_type": "llama", **ARCHITECTURES[name]}, seed=1).load(None, dtype).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 61, (3, 9))
    labels = ids.clone()
    labels[0, :4] = labels[1, 6:] = labels[2] = -100
    return ids, labels


def plain(model: Any, ids: torch.Tensor, labels: torch.Tensor, objective: Objective) -> torch.Tensor:
    """The loss from transformers' own logits, by torch."""
    logits, target = model(input_ids=ids).logits[:, :-1], labels[:, 1:]
    smoothing = getattr(objective, "epsilon", 0.0)
    return nn.functional.cross_entropy(logits[target != -100], target[target != -100], label_smoothing=smoothing)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("objective", [NLL(), LabelSmoothing(0.2)], ids=repr)
def test_loss_and_gradients_equal_those_of_the_models_own_logits(name: str, objective: Objective) -> None:
    model, (ids, labels) = built(name), batch()
    expected = plain(model, ids, labels, objective)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    head = install_head(model)
    output, loss, auxiliary = forward_with_objective(model, ids, HeadRequest(labels, objective))
    assert auxiliary is None
    assert output.log_probs.shape == ((labels[:, 1:] != -100).sum(),)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)
    assert model.get_output_embeddings() is head
    # Outside a request the model is unchanged, soft cap included.
    torch.testing.assert_close(plain(model, ids, labels, objective), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", architectures.OBJECTIVES)
@pytest.mark.parametrize("family", architectures.FAMILIES)
def test_every_family_has_the_loss_and_gradients_of_its_own_logits(family: str, name: str) -> None:
    loss, gradient = architectures.errors(family, architectures.OBJECTIVES[name])
    assert loss < 1e-6
    assert gradient < 1e-5


def test_padding_on_the_right_changes_nothing() -> None:
    model, (ids, labels) = built("llama"), batch()
    install_head(model)
    _, loss, _ = forward_with_objective(model, ids, HeadRequest(labels, NLL()))
    padded = nn.functional.pad(ids, (0, 5), value=0), nn.functional.pad(labels, (0, 5), value=-100)
    _, other, _ = forward_with_objective(model, padded[0], HeadRequest(padded[1], NLL()))
    torch.testing.assert_close(other, loss, rtol=1e-12, atol=1e-12)


def test_a_mixture_of_experts_keeps_its_auxiliary_loss() -> None:
    fields = {
        **SMALL,
        "model_type": "mixtral",
        "num_local_experts": 4,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.5,
    }
    model, (ids, labels) = RandomCausalLM(fields).load(None, torch.float32).eval(), batch()
    mask = torch.ones_like(ids)
    mask[1, 6:] = mask[2, 4:] = 0  # padding, which the auxiliary loss leaves out
    expected = model(input_ids=ids, labels=labels, attention_mask=mask)
    install_head(model)
    _, loss, auxiliary = forward_with_objective(model, ids, HeadRequest(labels, NLL()), mask)
    torch.testing.assert_close(auxiliary, 0.5 * expected.aux_loss)
    torch.testing.assert_close(loss + auxiliary, expected.loss, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient_and_computes_the_head_once() -> None:
    ids, labels = batch()
    results = []
    for checkpointing in (False, True):
        source = RandomCausalLM({"model_type": "llama", **SMALL}, seed=1, gradient_checkpointing=checkpointing)
        model = source.load(None, torch.float64)
        head = install_head(model)
        calls: list[int] = []
        head.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        _, loss, _ = forward_with_objective(model, ids, HeadRequest(labels, NLL()))
        results.append(torch.autograd.grad(loss, list(model.parameters())))
        assert len(calls) == 1
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_gradient_checkpointing_is_switched_on() -> None:
    source = RandomCausalLM({"model_type": "llama", **SMALL}, gradient_checkpointing=True)
    assert source.load(None, torch.float32).is_gradient_checkpointing


def test_a_model_that_attends_to_later_tokens_is_rejected() -> None:
    bert = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    model = RandomCausalLM({"model_type": "bert", **bert}).load(None, torch.float32)
    with pytest.raises(UserError, match="but in BertLMHeadModel a token attends to later tokens"):
        install_head(model)
    assert model.training


def test_installing_the_head_twice_changes_nothing() -> None:
    model = built("llama")
    assert install_head(model) is install_head(model)


def test_tied_weights_stay_tied() -> None:
    model = built("qwen2, tied")
    head = install_head(model)
    assert isinstance(head, ObjectiveHead)
    assert head.weight is model.get_input_embeddings().weight


def test_an_unknown_change_of_the_logits_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama")
    forward = type(model).forward

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 1.01
        return out

    monkeypatch.setattr(type(model), "forward", changed)
    with pytest.raises(UserError, match="LlamaForCausalLM changes its logits"):
        install_head(model)


def test_adapters_for_a_module_that_is_no_language_model_are_rejected() -> None:
    with pytest.raises(UserError, match="Linear has none"):
        ProbSFTModule(nn.Linear(2, 2), lora=LoRA())


def test_a_model_without_an_output_layer_is_rejected() -> None:
    with pytest.raises(UserError, match="LlamaModel has none"):
        install_head(built("llama").model)
    model = built("llama")
    model.set_output_embeddings(nn.Sequential(nn.Linear(16, 61)))
    with pytest.raises(UserError, match="plain torch.nn.Linear"):
        install_head(model)


def test_a_saved_model_is_loaded_unchanged(tmp_path: Path) -> None:
    model = built("llama", torch.float32)
    model.save_pretrained(tmp_path / "model")
    loaded = PretrainedCausalLM(str(tmp_path / "model"), attn_implementation="eager").load(None, torch.float32)
    assert loaded.training
    assert loaded.config._attn_implementation == "eager"
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    narrow = PretrainedCausalLM(str(tmp_path / "model"), dtype="bfloat16").load(None, torch.float32)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


def test_the_same_seed_gives_the_same_weights_whatever_else_is_random() -> None:
    one = tiny.model(seed=3)
    torch.manual_seed(99)
    other, third = tiny.model(seed=3), tiny.model(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (PretrainedCausalLM("./nowhere"), "model_name_or_path.*nowhere"),
        (RandomCausalLM({"hidden_size": 8}), "model_type"),
        (RandomCausalLM({"model_type": "lama"}), "Did you mean 'llama'"),
        (RandomCausalLM({"model_type": "llama", "hiden_size": 8}), "Did you mean 'hidden_size'"),
        (RandomCausalLM({"model_type": "llama", **SMALL, "num_attention_heads": "two"}), "model.model.config"),
        (RandomCausalLM({"model_type": "llama", **SMALL}, attn_implementation="sdpaa"), "sdpaa"),
    ],
)
def test_a_model_that_cannot_be_loaded_gives_a_message_of_one_line(source: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        source.load(None, torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "asked", "expected"),
    [
        ("bfloat16", None, torch.bfloat16),
        ("float16", None, torch.float16),
        ("float32", None, torch.float32),
        ("bfloat16", torch.float32, torch.float32),
    ],
)
def test_an_export_has_the_dtype_of_the_base_unless_another_is_asked_for(
    tmp_path: Path, base: str, asked: torch.dtype | None, expected: torch.dtype
) -> None:
    built("llama", getattr(torch, base)).save_pretrained(tmp_path / "base")
    model = PretrainedCausalLM(str(tmp_path / "base")).load(None, torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weights = in_export_dtype(model.state_dict(), asked, model.config)
    assert {value.dtype for value in weights.values()} == {expected}


def test_weights_that_do_not_fit_a_dtype_are_not_rounded_to_infinity() -> None:
    model = built("llama", torch.float32)
    weights = {"a": torch.tensor([1.0, 1e6])}
    with pytest.raises(UserError, match="--dtype: a has values up to 1e.06, too large for torch.float16"):
        in_export_dtype(weights, torch.float16, model.config)
    model.config.dtype = torch.float16  # of the base, which was not asked for
    with pytest.warns(match="too large for torch.float16"):
        assert in_export_dtype(weights, None, model.config)["a"].dtype == torch.float32
