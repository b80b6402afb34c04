"""A packed document never attends to its neighbour: logits, losses and gradients equal those of unpacked documents. A
model that mixes documents is rejected."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lit_probsft.data.batches.collate import collate
from lit_probsft.data.batches.plan import MicroBatch
from lit_probsft.errors import UserError
from lit_probsft.head.layer import HeadRequest
from lit_probsft.model import RandomCausalLM
from lit_probsft.model.forward import forward_with_objective, install_head
from lit_probsft.model.lora import LoRA
from lit_probsft.model.packing import Packs, check_packing
from lit_probsft.objectives import NLL, Objective, Threshold
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.members import ALL
from tests.model.test_sources import GPT2, SMALL

GEMMA2 = {**SMALL, "model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 4}

KEEP_APART: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "model_type": "llama"},
    "qwen2": {**SMALL, "model_type": "qwen2"},
    "gemma2 (soft caps, sliding window)": {**GEMMA2, "attn_logit_softcapping": 3.0},
    "gpt2 (learned positions)": {**GPT2, "model_type": "gpt2"},
}

PACKS = ((9, 3, 6), (11, 1, 2))  # lengths; the second row is padded


def documents(teacher: Any = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and labels; every other label is the most probable one under `teacher`, so that some p are large."""
    generator = np.random.default_rng(0)
    found = []
    for length in sum(PACKS, ()):
        ids = generator.integers(3, 61, length)
        labels = ids.copy()
        if teacher is not None:
            labels[1::2] = teacher(input_ids=torch.tensor(ids)[None]).logits[0, :-1:2].argmax(-1)
        labels[: length // 3] = -100
        found.append((ids, labels))
    return found


def batches(teacher: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same documents in packs and in rows of their own."""
    found = documents(teacher)
    counts = (sum(int((labels[1:] != -100).sum()) for _, labels in found), 5, sum(len(ids) for ids, _ in found))
    places = tuple(range(len(found)))
    sizes = tuple(map(len, PACKS))
    return collate(MicroBatch(places, *counts, sizes), found, 0), collate(MicroBatch(places, *counts), found, 0)


def built(name: str, dtype: torch.dtype = torch.float32, scale: float = 8, **options: Any) -> Any:
    model = RandomCausalLM(KEEP_APART[name], seed=1, **options).load(None, dtype)
    with torch.no_grad():  # with the usual small weights a small leak would be invisible
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= scale
    return model


@pytest.mark.parametrize("name", KEEP_APART)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
def test_a_packed_document_has_the_logits_of_the_document_alone(
    name: str, checkpointing: bool, use_cache: bool
) -> None:
    attention = "eager" if name.startswith("gemma2") else "sdpa"  # sdpa ignores attention's soft cap
    model = built(name, attn_implementation=attention, gradient_checkpointing=checkpointing)
    for module in model.modules():  # with dropout two passes would differ
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.use_cache = use_cache
    batch = batches()[0]
    packs = Packs.from_batch(batch)
    assert packs is not None
    logits = model(input_ids=batch["input_ids"], **packs.arguments(model.config)).logits
    ids, logits = batch["input_ids"].flatten(), logits.flatten(0, 1)
    for start, end in pairwise(batch["boundaries"]):
        alone = model(input_ids=ids[start:end][None], use_cache=False).logits[0]
        assert alone.std() > 0.1 or not ids[start:end].any()  # padding
        torch.testing.assert_close(logits[start:end], alone, rtol=1e-5, atol=1e-5)


class Alone(ProbSFTModule):
    """A module without a trainer."""

    total_steps = 10


@pytest.mark.parametrize("normalize", ["tokens", "sequence"])
@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_packs_have_the_loss_and_gradients_of_unpacked_rows(objective: Objective, normalize: Any) -> None:
    results = []
    model = built("gpt2 (learned positions)", torch.float64, scale=30).eval()
    for batch in batches(model):
        module = Alone(model, objective, normalize=normalize)
        output, loss, _ = module.compute(batch, 7.0)
        results.append((output, loss, torch.autograd.grad(loss, list(module.model.parameters()))))
    (packed, loss, gradients), (padded, expected, wanted) = results
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(packed.log_probs, padded.log_probs, rtol=1e-9, atol=1e-9)
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    assert largest > 0
    for got, gradient in zip(gradients, wanted, strict=True):  # keys' biases have rounding errors only
        torch.testing.assert_close(got, gradient, rtol=1e-9, atol=1e-11 * max(largest, 1))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 20)


def one_step(
    rows: Path, normalize: Any, accumulate: int, lora: LoRA | None = None, **options: Any
) -> tuple[ProbSFTModule, Any]:
    model = tiny.model(torch.float64)
    if lora is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(0)  # for the adapters
    module = ProbSFTModule(model, Threshold(NLL(), 0.004), tiny.sgd, Schedule("constant", 0), normalize, lora)
    datamodule = tiny.data(rows, **options)
    run = tiny.trainer(max_steps=1, max_epochs=-1, accumulate_grad_batches=accumulate)
    run.fit(module, datamodule=datamodule)
    assert datamodule.num_windows == 1
    return module, run.callback_metrics


@pytest.mark.parametrize(
    ("normalize", "lora"), [("tokens", None), ("sequence", None), ("kept", None), ("tokens", LoRA(r=2))]
)
def test_a_step_on_packs_equals_the_step_on_unpacked_documents(rows: Path, normalize: Any, lora: LoRA | None) -> None:
    module, metrics = one_step(rows, normalize, 1, lora, batch_size=20, length_pool=0)
    expected = tiny.weights(module)
    assert float(metrics["train/grad_norm"]) > 1e-3
    for accumulate, options in ((1, {"batch_size": 8, "max_length": 256}), (8, {"batch_size": 2, "max_length": 128})):
        module, logged = one_step(rows, normalize, accumulate, lora, packing=True, **options)
        for name, value in tiny.weights(module).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)
        for name in ("train/loss", "train/nll", "train/mean_p", "train/inside", "train/grad_norm"):
            assert float(logged[name]) == pytest.approx(float(metrics[name]), rel=1e-6)
    assert 0 < float(metrics["train/inside"]) < 1


def test_the_first_token_of_a_document_is_not_predicted_from_its_neighbour() -> None:
    """Changing the last tokens of the neighbours leaves the loss unchanged."""
    found, packed = documents(), []
    for changed in (False, True):
        ids = [ids.copy() for ids, _ in found]
        if changed:
            ids[0][-1] = 3 + (ids[0][-1] - 2) % 50
        labels = [np.where(np.arange(len(row)) < (len(row) if i == 0 else 0), -100, row) for i, row in enumerate(ids)]
        micro = MicroBatch(tuple(range(len(ids))), 1, 1, 1, tuple(map(len, PACKS)))
        batch = collate(micro, list(zip(ids, labels, strict=True)), 0)
        packed.append(Alone(built("llama", torch.float64).eval()).compute(batch)[0])
    assert packed[0].log_probs.shape == (sum(length - 1 for length in sum(PACKS, ())) - (PACKS[0][0] - 1),)
    torch.testing.assert_close(packed[0].log_probs, packed[1].log_probs, rtol=1e-9, atol=1e-9)


def test_the_auxiliary_loss_of_packs_counts_no_padding() -> None:
    fields = {**SMALL, "model_type": "mixtral", "num_local_experts": 4, "output_router_logits": True}
    model = RandomCausalLM({**fields, "router_aux_loss_coef": 0.5}, seed=1).load(None, torch.float32).eval()
    install_head(model)
    results = []
    for batch in batches():
        request = HeadRequest(batch["labels"], NLL(), 1.0, torch.ones(batch["labels"].shape))
        packs = Packs.from_batch(batch)
        results.append(forward_with_objective(model, batch["input_ids"], request, batch["attention_mask"], packs)[1:])
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)


def test_transformers_still_names_the_attention_of_a_model() -> None:
    found = getattr(built("llama", attn_implementation="eager").config, "_attn_implementation", None)
    assert found == "eager", "transformers has renamed config._attn_implementation, which model/packing.py reads"


def test_kernels_for_unequal_lengths_get_the_boundaries() -> None:
    """A substitute for flash attention that knows the documents only from its arguments, called once per layer."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    given: list[tuple[Any, ...]] = []

    def by_document(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **more: Any) -> Any:
        bounds, longest = more["cu_seq_lens_q"], more["max_length_q"]
        given.append((bounds, more["cu_seq_lens_k"], longest, more["max_length_k"]))
        assert mask is None
        groups = module.num_key_value_groups
        flat = [
            x.transpose(1, 2).flatten(0, 1) for x in (query, *(x.repeat_interleave(groups, 1) for x in (key, value)))
        ]
        out = torch.empty_like(flat[0])
        for start, end in pairwise(bounds):
            assert end - start <= longest
            q, k, v = (x[start:end].transpose(0, 1) for x in flat)
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
            out[start:end] = attended.transpose(0, 1)
        return out.reshape(query.shape[0], query.shape[2], *out.shape[1:]), None

    ALL_ATTENTION_FUNCTIONS.register("flash_stand_in", by_document)
    model, batch = built("llama"), batches()[0]
    packs = Packs.from_batch(batch)
    assert packs is not None
    expected = model(input_ids=batch["input_ids"], **packs.arguments(model.config)).logits
    assert "cu_seq_lens_q" not in packs.arguments(model.config)
    model.config._attn_implementation = "flash_stand_in"
    logits = model(input_ids=batch["input_ids"], **packs.arguments(model.config)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert given == [(packs.boundaries, packs.boundaries, packs.longest, packs.longest)] * 2


SEE_OTHERS: dict[str, dict[str, Any]] = {
    "MambaForCausalLM": {"model_type": "mamba", "vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2},
    "JambaForCausalLM": {**SMALL, "model_type": "jamba", "use_mamba_kernels": False, "num_experts": 2},
    "BloomForCausalLM": {"model_type": "bloom", "vocab_size": 61, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "OPTForCausalLM": {
        "model_type": "opt",
        "vocab_size": 61,
        "hidden_size": 16,
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}


@pytest.mark.parametrize("name", SEE_OTHERS)
def test_a_model_in_which_documents_affect_each_other_is_rejected(name: str) -> None:
    model = RandomCausalLM(SEE_OTHERS[name], seed=1).load(None, torch.float32)
    with pytest.raises(UserError, match=f"data.packing: expected .* but in {name} one affects another"):
        check_packing(model)
    assert model.training


@pytest.mark.parametrize("name", KEEP_APART)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_keeps_documents_apart_is_accepted(name: str, dtype: torch.dtype) -> None:
    check_packing(built(name, dtype))


def test_a_model_that_uses_places_in_the_pack_or_no_positions_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("gpt2 (learned positions)")
    forward = type(model).forward

    def counting_on(self: Any, position_ids: torch.Tensor, **kwargs: Any) -> Any:
        count_on = self.transformer.wpe.register_forward_pre_hook(lambda _, i: torch.arange(i[0].shape[1])[None])
        try:
            return forward(self, position_ids=position_ids, **kwargs)
        finally:
            count_on.remove()

    monkeypatch.setattr(type(model), "forward", counting_on)
    with pytest.raises(UserError, match="GPT2LMHeadModel uses their places in the pack"):
        check_packing(model)

    def without(self: Any, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> Any:
        return forward(self, input_ids=input_ids)

    monkeypatch.setattr(type(model), "forward", without)
    with pytest.raises(UserError, match="GPT2LMHeadModel does not: .*position_ids"):
        check_packing(model)


def test_a_run_with_a_model_that_mixes_documents_stops_before_its_first_step(rows: Path) -> None:
    module = ProbSFTModule(RandomCausalLM({"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1}), NLL())
    run = tiny.trainer()
    with pytest.raises(UserError, match="data.packing: .*MambaForCausalLM"):
        run.fit(module, datamodule=tiny.data(rows, packing=True, max_length=128))
    assert run.global_step == 0


def gpt2() -> Any:
    """A model with fewer positions than a pack has tokens, but more than a document has."""
    fields = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96}
    return RandomCausalLM({**fields, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})


class SaveAtFive(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            trainer.save_checkpoint(self.path)


def packed_fit(rows: Path, ckpt_path: Path | None = None, save: Path | None = None, **options: Any) -> Any:
    module = ProbSFTModule(gpt2(), NLL(), tiny.adamw, Schedule("constant", 0))
    run = tiny.trainer(max_epochs=2, callbacks=[SaveAtFive(save)] if save else [])
    data = tiny.data(rows, **{"packing": True, "max_length": 128, "batch_size": 3, **options})
    run.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=False)
    return module


def test_a_packed_run_resumes_bit_for_bit(rows: Path, tmp_path: Path) -> None:
    whole = packed_fit(rows)
    packed_fit(rows, save=tmp_path / "five.ckpt")
    resumed = packed_fit(rows, ckpt_path=tmp_path / "five.ckpt")
    assert resumed.global_step == whole.global_step == 8
    for name, value in tiny.weights(whole).items():
        assert torch.equal(tiny.weights(resumed)[name], value), name


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {"packing": False}, "the plan's packing as in the checkpoint, 128, got None"),
        ({"packing": False}, {}, "the plan's packing as in the checkpoint, None, got 128"),
        ({}, {"max_length": 160}, "the plan's packing as in the checkpoint, 128, got 160"),
        ({}, {"batch_size": 2}, "the plan's window_size as in the checkpoint, 3, got 2"),
    ],
)
def test_resuming_with_other_packs_is_rejected(
    rows: Path, tmp_path: Path, before: dict[str, Any], after: dict[str, Any], words: str
) -> None:
    packed_fit(rows, save=tmp_path / "five.ckpt", **before)
    with pytest.raises(UserError, match=words):
        packed_fit(rows, ckpt_path=tmp_path / "five.ckpt", **after)
