"""LoRA: the start of training, the trained parameters, checkpoints and the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lit_probsft.cli.commands import main
from lit_probsft.data import ByteTokenizer
from lit_probsft.errors import UserError
from lit_probsft.head.layer import HeadRequest
from lit_probsft.model import RandomCausalLM
from lit_probsft.model.forward import forward_with_objective
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.objectives import NLL
from lit_probsft.run.export import export_model
from lit_probsft.training.checkpoints import CheckpointOptions, Checkpoints
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.cli.test_fit import STOPPER, config, slow
from tests.model.test_sources import ARCHITECTURES
from tests.parallel.worker import CONFIGS

MODELS: dict[str, dict[str, Any]] = {
    **CONFIGS,
    **{f"{name} of test_sources": {"model_type": "llama", **fields} for name, fields in ARCHITECTURES.items()},
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 3, 44, 60, 1]])


def plain(name: str, dtype: torch.dtype = torch.float32) -> Any:
    fields = MODELS[name]
    tokenizer = None if "vocab_size" in fields else ByteTokenizer().load(list)
    return RandomCausalLM(fields, seed=1).load(tokenizer, dtype).eval()


def adapted(name: str, lora: LoRA = LoRA(r=4), dtype: torch.dtype = torch.float32) -> Any:  # noqa: B008  frozen
    model = plain(name, dtype)
    inject_adapters(model, lora)
    return model


def adapters(model: Any) -> dict[str, nn.Parameter]:
    """The parameters of adapters by their names, trained or not."""
    return {name: p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def disturb(model: Any) -> None:
    """Set all adapters to random values, so that none of them is zero."""
    for parameter in adapters(model).values():
        nn.init.normal_(parameter, std=0.2)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("name", MODELS)
def test_training_starts_at_the_model_without_adapters(name: str) -> None:
    model = adapted(name)
    assert len(adapters(model)) >= 2 * 2 * 4  # A and B of four matrices in two layers
    assert torch.equal(logits(model), logits(plain(name)))


@pytest.mark.parametrize("name", MODELS)
def test_only_adapters_have_gradients(name: str) -> None:
    model = adapted(name)
    disturb(model)
    forward_with_objective(model, IDS, HeadRequest(IDS, NLL()))[1].backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == adapters(model).keys()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == moved


@pytest.mark.parametrize("name", MODELS)
def test_merged_weights_compute_the_same_as_the_adapters(name: str, tmp_path: Path) -> None:
    lora = LoRA(r=4, alpha=3.0)
    model = adapted(name, lora)
    disturb(model)
    export_model(model, ByteTokenizer().load(list), tmp_path / "out", lora=lora)
    exported, base = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), plain(name)
    expected = logits(model)
    assert float((expected - logits(base)).abs().max()) > 1e-2
    torch.testing.assert_close(logits(exported), expected, rtol=1e-5, atol=1e-5)
    assert exported.state_dict().keys() == base.state_dict().keys()
    tied = [m.get_input_embeddings().weight is m.get_output_embeddings().weight for m in (exported, base)]
    assert tied[0] == tied[1]


def test_a_square_transposed_matrix_is_merged_in_its_orientation(tmp_path: Path) -> None:
    """A wrong orientation would have the right shape too."""
    lora = LoRA(r=4, target_modules=["attn.c_proj"])
    model = adapted("gpt2", lora)
    assert len(adapters(model)) == 4
    disturb(model)
    export_model(model, ByteTokenizer().load(list), tmp_path / "out", lora=lora)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert float((logits(model) - logits(plain("gpt2"))).abs().max()) > 1e-2
    torch.testing.assert_close(logits(exported), logits(model), rtol=1e-5, atol=1e-5)


def test_merging_rounds_once_to_the_dtype_of_the_weights(tmp_path: Path) -> None:
    lora = LoRA(r=4, target_modules=["q_proj"])
    model = adapted("llama", lora, torch.bfloat16)
    disturb(model)
    export_model(model, ByteTokenizer().load(list), tmp_path / "out", lora=lora)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {p.dtype for p in exported.parameters()} == {torch.bfloat16}
    layer = model.model.layers[0].self_attn.q_proj
    w, a, b = (m.weight.double() for m in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]))
    exact = (w + lora.scaling * (b @ a)).detach()
    found = exported.model.layers[0].self_attn.q_proj.weight.double()
    # Half a unit in the last of bf16's eight digits, and the rounding of fp32.
    torch.testing.assert_close(found, exact, rtol=2.0**-8 * 1.01, atol=1e-6)


def test_the_initial_values_of_a_depend_on_the_seed_only() -> None:
    state = torch.get_rng_state()
    one = adapters(adapted("llama", LoRA(seed=3)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    other, third = adapters(adapted("llama", LoRA(seed=3))), adapters(adapted("llama", LoRA(seed=4)))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        assert torch.equal(value, third[name]) == (".lora_B." in name), name
        assert bool(value.any()) == (".lora_A." in name), name


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_random_in_training_only(dropout: float) -> None:
    model = adapted("llama", LoRA(dropout=dropout))
    disturb(model)
    expected = logits(model)
    assert torch.equal(logits(model), expected)
    with torch.no_grad():
        first, second = (model.train()(input_ids=IDS).logits for _ in range(2))
    assert torch.equal(first, second) == (dropout == 0)
    assert torch.equal(first, expected) == (dropout == 0)


@pytest.mark.parametrize(
    ("targets", "ends"),
    [
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        (["mlp.up_proj"], {"up_proj"}),
    ],
)
def test_only_the_target_modules_of_all_layers_are_adapted(targets: Any, ends: set[str]) -> None:
    found = {name.partition(".lora_")[0] for name in adapters(adapted("llama", LoRA(target_modules=targets)))}
    assert {name.rsplit(".", 1)[-1] for name in found} == ends
    assert len(found) == 2 * len(ends)


def fit(rows: Path, *, lora: LoRA = LoRA(r=4), ckpt_path: Path | None = None, **options: Any) -> tiny.Counted:  # noqa: B008
    module = tiny.Counted(
        tiny.source(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        schedule=Schedule("constant", warmup=0),
        lora=lora,
    )
    trainer = tiny.trainer(**options)
    trainer.fit(module, datamodule=tiny.data(rows), ckpt_path=ckpt_path)
    return module


def test_fit_trains_all_adapters_and_nothing_else(tmp_path: Path) -> None:
    module = fit(tiny.write_rows(tmp_path / "rows.jsonl"), max_steps=2)
    optimizer = module.trainer.optimizers[0]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in adapters(module.model).values()} == {id(p) for p in optimizer.state}
    start = tiny.model()
    inject_adapters(start, LoRA(r=4))
    trained = adapters(module.model)
    for name, value in start.named_parameters():
        name = name.replace("lm_head.base_layer", "lm_head")
        assert torch.equal(value, module.model.get_parameter(name)) == (name not in trained), name


def test_a_run_with_adapters_resumes_bit_for_bit(tmp_path: Path) -> None:
    rows, lora = tiny.write_rows(tmp_path / "rows.jsonl"), LoRA(r=4, dropout=0.2)
    saved = Checkpoints(tmp_path, CheckpointOptions(save_every=2, keep_last=9))
    whole = fit(rows, lora=lora, max_epochs=2, callbacks=[saved], enable_checkpointing=True)
    middle = tmp_path / "step-00000002.ckpt"  # in an epoch of three steps
    resumed = fit(rows, lora=lora, max_epochs=2, ckpt_path=middle)
    assert whole.trainer.global_step == resumed.trainer.global_step == 6
    assert resumed.losses == whole.losses[2:]
    expected = tiny.weights(whole)
    for name, value in tiny.weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    with pytest.raises(UserError, match=r"--resume: expected model\.lora as in the checkpoint"):
        fit(rows, lora=LoRA(r=4, dropout=0.3), max_epochs=2, ckpt_path=middle)


LORA = ["--model.lora", "LoRA", "--model.lora.r", "4", "--model.lora.alpha", "8", "--model.lora.dropout", "0.2"]


@pytest.mark.parametrize("model", ["tied", slow("gpt2")])
def test_a_run_exports_a_plain_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"class_path": "RandomCausalLM", "init_args": {"config": MODELS[model]}}
    path = str(config(tmp_path, model__model=source))
    cli = main(["fit", "--config", path, *LORA])
    for name, value in adapters(cli.model.model).items():
        assert bool(value.any()), name
    main(["export", "runs/tiny/checkpoints/last.ckpt", "out"])
    expected = logits(cli.model.model)
    for folder in ("runs/tiny/hf", "out"):
        assert not [name for name in (tmp_path / folder).iterdir() if "adapter" in name.name]
        exported = AutoModelForCausalLM.from_pretrained(folder)
        assert type(exported) is type(plain(model))
        assert not adapters(exported)
        torch.testing.assert_close(logits(exported), expected, rtol=1e-5, atol=1e-5)
    # The configuration still has adapters. They start at zero, so the merged weights decide.
    trained = cli.trainer.callback_metrics["val/nll"]
    again = main(["validate", "--config", path, *LORA]).trainer.callback_metrics["val/nll"]
    assert float(again) == pytest.approx(float(trained), rel=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_with_adapters_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stopper_of_test_lora.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(tmp_path)
    path = config(tmp_path, checkpoints={"save_every": 1, "export": "none"}, trainer__limit_val_batches=0)
    options = ["fit", "--config", str(path), *LORA, "--trainer.max_epochs=2"]
    whole = main([*options, "--name", "whole"])
    stopper = "--trainer.callbacks=[{class_path: stopper_of_test_lora.Stopper, init_args: {step: 4}}]"
    with pytest.raises(RuntimeError, match="the power goes out"):
        main([*options, "--name", "parts", stopper])
    resumed = main([*options, "--name", "parts", "--resume"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 6
    expected = tiny.weights(whole.model)
    for name, value in tiny.weights(resumed.model).items():
        assert torch.equal(value, expected[name]), name


def test_adapters_of_a_model_in_bf16_are_fp32() -> None:
    """A step of 2e-5 on a weight of 0.01 rounds to nothing in bf16."""
    model = tiny.model(torch.bfloat16)
    inject_adapters(model, LoRA(r=2))
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
