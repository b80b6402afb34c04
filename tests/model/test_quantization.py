"""Adapters on a base in 4 or 8 bits, and the plain model that they are merged into."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.model.quantization import dequantized, is_quantized_layer
from lit_probsft.model.source import describe
from lit_probsft.objectives import ASFT, NLL
from lit_probsft.parallel.strategies import FSDP2
from lit_probsft.training.checkpoints import CheckpointOptions, Checkpoints
from lit_probsft.training.compatibility import check_adapters
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.cli.test_fit import config
from tests.model.test_lora import IDS, logits

pytest.importorskip("bitsandbytes")

WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "base"
    tiny.model(**WIDE).save_pretrained(folder)
    return folder


def source(base: Path, quantization: Any = "nf4", **options: Any) -> PretrainedCausalLM:
    return PretrainedCausalLM(str(base), quantization=quantization, **options)


def fit(
    rows: Path, source: PretrainedCausalLM, lora: LoRA, ckpt_path: Path | None = None, **options: Any
) -> tiny.Counted:
    objective = options.pop("objective", NLL())
    adamw = lambda p: torch.optim.AdamW(p, lr=5e-3)  # noqa: E731
    module = tiny.Counted(source, objective, optimizer=adamw, schedule=Schedule("constant", warmup=0), lora=lora)
    tiny.trainer(**options).fit(module, datamodule=tiny.data(rows), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_layers_are_quantized_and_the_output_layer_is_not(base: Path, quantization: Any) -> None:
    model = source(base, quantization).load(None, torch.float32)
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_quantized_layer(module)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert describe(model)["parameters"] == describe(tiny.model(**WIDE))["parameters"]
    state = model.layers[0] if hasattr(model, "layers") else model.model.layers[0]
    assert state.mlp.up_proj.weight.dtype in (torch.uint8, torch.int8)
    if quantization == "nf4":
        found = model.model.layers[0].mlp.up_proj.weight.quant_state
        assert (found.quant_type, found.nested) == ("nf4", True)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_dequantized_weights_are_close_to_the_original_ones(base: Path, quantization: Any) -> None:
    model = source(base, quantization).load(None, torch.float32)
    found, exact = dequantized(model, model.state_dict()), tiny.model(**WIDE).state_dict()
    assert found.keys() == exact.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        error = float((value - exact[name]).abs().max() / exact[name].abs().max())
        assert (0 < error < (0.2 if quantization == "nf4" else 0.02)) == ("_proj" in name), (name, error)
        assert error == 0 or "_proj" in name


@pytest.mark.parametrize(
    ("quantization", "options", "tolerance"),
    # 8-bit layers round their inputs as well.
    [
        ("nf4", {"dora": True}, 1e-4),
        pytest.param("nf4", {}, 1e-4, marks=pytest.mark.slow),
        pytest.param("int8", {}, 2e-2, marks=pytest.mark.slow),
    ],
)
def test_training_reduces_the_loss_and_exports_a_plain_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: Any, options: Any, tolerance: float
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = {"model_name_or_path": str(base), "quantization": quantization}
    cli = main(
        [
            "fit",
            "--config",
            str(
                config(
                    tmp_path,
                    model__model={"class_path": "PretrainedCausalLM", "init_args": chosen},
                    model__lora={"r": 4, "alpha": 8.0, **options},
                    trainer__max_epochs=2,
                )
            ),
        ]
    )
    expected = logits(cli.model.model)
    found = AutoModelForCausalLM.from_pretrained("runs/tiny/hf")
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert not hasattr(found.config, "quantization_config")
    assert float((logits(found) - logits(tiny.model(**WIDE))).abs().max()) > 0.1
    torch.testing.assert_close(logits(found), expected, rtol=tolerance, atol=tolerance)
    assert cli.trainer.callback_metrics["val/nll"] < cli.model.initial_metrics["val/nll"] - 0.05
    main(["export", "runs/tiny/checkpoints/last.ckpt", "out"])
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("out")), logits(found))


@pytest.mark.parametrize("quantization", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_run_resumes_bit_for_bit_and_its_base_stays_unchanged(base: Path, tmp_path: Path, quantization: Any) -> None:
    rows, lora = tiny.write_rows(tmp_path / "rows.jsonl"), LoRA(r=4, modules_to_save=["norm"])
    saved = Checkpoints(tmp_path, CheckpointOptions(save_every=1, keep_last=9))
    chosen = source(base, quantization)
    whole = fit(rows, chosen, lora, max_epochs=2, callbacks=[saved], enable_checkpointing=True)
    assert whole.losses[-1] < whole.losses[0] - 0.1
    middle = tmp_path / "step-00000002.ckpt"
    resumed = fit(rows, chosen, lora, max_epochs=2, ckpt_path=middle)
    assert resumed.losses == whole.losses[2:]
    for (name, ours), theirs in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    fresh = dict(chosen.load(None, torch.float32).named_parameters())
    for name, value in whole.model.named_parameters():
        if not value.requires_grad:
            assert torch.equal(value, fresh[name.replace(".base_layer", "")]), name
    with pytest.raises(UserError, match=r"--resume: expected the base that the checkpoint's adapters were trained"):
        fit(rows, source(base, "int8" if quantization == "nf4" else "nf4"), lora, max_epochs=2, ckpt_path=middle)


def test_the_reference_is_the_quantized_base_with_its_adapters_off(base: Path, tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl")
    module = fit(rows, source(base), LoRA(r=4), max_steps=2, objective=ASFT())
    plain = source(base).load(None, torch.float32)
    from lit_probsft.model.adapters import adapters_off

    with adapters_off(module.model):
        assert torch.equal(logits(module.model), logits(plain))


def test_messages_that_users_cannot_act_on_are_hidden(
    base: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = source(base, "int8").load(None, torch.float32)
    with torch.no_grad():
        model(input_ids=IDS)
    logging.getLogger("bitsandbytes.autograd._functions").warning("something new")
    assert [record.getMessage() for record in caplog.records if "bitsandbytes" in record.name] == ["something new"]


# --- rejected combinations


def test_quantized_matrices_cannot_be_trained(base: Path) -> None:
    with pytest.raises(UserError) as caught:
        ProbSFTModule(source(base))
    assert str(caught.value) == (
        "model.model.quantization: expected model.lora with nf4, because quantized matrices cannot be trained, got none"
    )
    model = source(base).load(None, torch.float32)
    with pytest.raises(UserError) as caught:
        inject_adapters(model, LoRA(modules_to_save=["q_proj"]))
    assert str(caught.value) == (
        "model.lora.modules_to_save: expected modules that are not quantized, because those cannot be trained in full, "
        "got 'q_proj'; name it in target_modules"
    )


def test_dora_is_rejected_with_8_bits(base: Path) -> None:
    with pytest.raises(UserError) as caught:
        ProbSFTModule(source(base, "int8"), lora=LoRA(dora=True))
    assert str(caught.value) == "model.lora.dora: expected nf4 or no quantization with it, got int8"


def test_an_unknown_quantization_is_rejected(base: Path) -> None:
    with pytest.raises(UserError) as caught:
        source(base, "fp4")
    assert str(caught.value) == "model.model.quantization: expected none, nf4 or int8, got 'fp4'"


def test_quantization_is_rejected_without_bitsandbytes(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError) as caught:
        source(base)
    assert str(caught.value) == (
        'model.model.quantization: bitsandbytes is not installed (pip install "lit_probsft[bitsandbytes]")'
    )


def test_fsdp2_rejects_a_quantized_model(base: Path) -> None:
    module = ProbSFTModule(source(base), lora=LoRA())
    module.trainer = tiny.trainer(strategy=FSDP2(), devices=1)
    with pytest.raises(UserError) as caught:
        check_adapters(module)
    assert str(caught.value) == (
        "model.model.quantization: expected none with FSDP2, which cannot shard quantized matrices; use ddp, where "
        "each device holds all of them"
    )
