"""New tokens in a trained model: each starts as the mean of the old ones, is trained, exported and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_probsft.cli.commands import main
from lit_probsft.data import ByteTokenizer
from lit_probsft.data.tokens.added_tokens import with_added_tokens
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM, RandomCausalLM
from lit_probsft.model.forward import install_head
from lit_probsft.model.lora import LoRA
from lit_probsft.model.reference import Reference
from lit_probsft.objectives import ASFT, NLL
from lit_probsft.training.module import ProbSFTModule
from tests import tiny

NEW = ["<think>", "</think>"]
PHI = {k: v for k, v in tiny.LLAMA.items() if k != "num_key_value_heads"}
CONFIGS: dict[str, dict[str, Any]] = {
    "untied": tiny.LLAMA,
    "tied": {**tiny.LLAMA, "tie_word_embeddings": True},
    "with a bias": {**PHI, "model_type": "phi"},
    "with room": {**tiny.LLAMA, "vocab_size": 300},
    "room for one": {**tiny.LLAMA, "vocab_size": 260},
    "tied, with room": {**tiny.LLAMA, "vocab_size": 300, "tie_word_embeddings": True},
}


def tokenizer() -> Any:
    return ByteTokenizer().load(list)


def saved(folder: Path, config: dict[str, Any]) -> Any:
    """A trained model with its tokenizer, in a folder; its bias is not zero."""
    model = RandomCausalLM(config, seed=3).load(tokenizer(), torch.float32)
    if (bias := model.get_output_embeddings().bias) is not None:
        bias.data.normal_()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_new_tokens_logit_is_the_mean_of_the_old_ones_and_no_other_changes(tmp_path: Path, name: str) -> None:
    before = saved(tmp_path, CONFIGS[name])
    model = PretrainedCausalLM(str(tmp_path)).load(with_added_tokens(tokenizer(), NEW), torch.float32).eval()
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    rows = max(CONFIGS[name].get("vocab_size", 0), 261)
    assert model.config.vocab_size == inputs.num_embeddings == outputs.out_features == len(outputs.weight) == rows
    assert (outputs.weight is inputs.weight) == ("tied" in name.split(", "))

    ids = torch.randint(0, 259, (2, 9))
    was, now = before(ids).logits, model(ids).logits
    torch.testing.assert_close(now[..., :259], was[..., :259], rtol=0, atol=0)
    for new in (259, 260):
        torch.testing.assert_close(now[..., new], was[..., :259].mean(-1), rtol=1e-5, atol=1e-6)
        mean = before.get_input_embeddings().weight[:259].double().mean(0).float()
        torch.testing.assert_close(inputs.weight[new], mean, rtol=0, atol=0)
    # rows of no token stay unchanged
    torch.testing.assert_close(now[..., 261:], was[..., 261:], rtol=0, atol=0)
    assert install_head(model).out_features == rows


def test_a_model_that_knows_a_token_keeps_its_row(tmp_path: Path) -> None:
    """A model that has been trained with the token, used as a reference or for a comparison."""
    model = RandomCausalLM(tiny.LLAMA, seed=3).load(tokenizer(), torch.float32)
    extended = with_added_tokens(tokenizer(), NEW)
    model.resize_token_embeddings(261, mean_resizing=False)
    row = model.get_input_embeddings().weight[259].detach().clone()
    model.save_pretrained(tmp_path)
    with_added_tokens(tokenizer(), NEW[:1]).save_pretrained(tmp_path)
    source = PretrainedCausalLM(str(tmp_path))
    assert source.new_tokens(extended) == {"</think>": 260}
    assert torch.equal(source.load(extended, torch.float32).get_input_embeddings().weight[259], row)


def test_a_model_passed_as_a_module_gets_new_rows_once(tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 8)
    module = ProbSFTModule(tiny.model(), NLL(), optimizer=tiny.sgd)
    data = tiny.data(rows, validation=str(rows), add_tokens=["+"], add_special_tokens=["<|go|>"])
    data._splits["validation"] = data._splits["train"]
    tiny.trainer().fit(module, datamodule=data)
    trained = tiny.weights(module)
    assert len(trained["lm_head.weight"]) == 260  # a `+` is known
    tiny.trainer().validate(module, datamodule=data, verbose=False)
    assert all(torch.equal(value, trained[name]) for name, value in tiny.weights(module).items())


def config(folder: Path, **data: Any) -> Path:
    """Fine-tune a saved model on rows whose answers contain new tokens."""
    saved(folder / "base", tiny.LLAMA)
    for name, count in (("train", 16), ("validation", 4)):
        rows = [json.loads(line) for line in tiny.write_rows(folder / "all.jsonl", count).read_text().splitlines()]
        for row in rows:
            row["answer"] = f"<think>{row['question']}</think>{row['answer']}"
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "question", "response": "answer"}
    content = {
        "model": {
            "model": str(folder / "base"),
            "objective": {"class_path": "NLL"},
            "generation": {"max_new_tokens": 4},
        },
        "data": {
            **{
                name: {"class_path": "Rows", "init_args": {"path": str(folder / f"{name}.jsonl"), **columns}}
                for name in ("train", "validation")
            },
            "add_tokens": NEW,
            "batch_size": 8,
            **data,
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }
    content["model"]["schedule"] = {"decay": "constant", "warmup": 0}
    content["model"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-2}}
    (folder / "new.yaml").write_text(yaml.safe_dump(content))
    return folder / "new.yaml"


WHOLE_ENDS = {"class_path": "LoRA", "init_args": {"modules_to_save": ["embed_tokens", "lm_head"]}}


@pytest.mark.parametrize("lora", [None, pytest.param(WHOLE_ENDS, marks=pytest.mark.slow)])
def test_a_run_with_new_tokens_resumes_exports_validates_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    path = config(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["model"]["lora"] = lora
    path.write_text(yaml.safe_dump(content))
    path = str(path)
    whole = main(["fit", "--config", path, "--name", "whole"])
    main(["fit", "--config", path, "--name", "parts", "--trainer.max_epochs", "1"])
    again = main(["fit", "--config", path, "--name", "parts", "--resume"])
    for name, value in tiny.weights(whole.model).items():
        assert torch.equal(tiny.weights(again.model)[name], value), name

    hf = tmp_path / "runs" / "whole" / "hf"
    model, own = AutoModelForCausalLM.from_pretrained(hf), AutoTokenizer.from_pretrained(hf)
    assert (model.config.vocab_size, len(own), len(model.lm_head.weight)) == (261, 261, 261)
    assert own.convert_tokens_to_ids(NEW) == [259, 260]
    # training makes their rows differ, in the embeddings and in the output layer
    for weight in (model.get_input_embeddings().weight, model.lm_head.weight):
        assert (weight[259] - weight[260]).abs().max() > 1e-3

    checked = main(["validate", "--config", path, "--name", "whole"])
    expected = json.loads((tmp_path / "runs/whole/run.json").read_text())["metrics"]["val/nll"]
    assert float(checked.trainer.callback_metrics["val/nll"]) == pytest.approx(expected, rel=1e-6)
    main(["predict", "--config", path, "--name", "whole"])
    assert len((tmp_path / "runs/whole/predictions.jsonl").read_text().splitlines()) == 4

    out = tmp_path / "out"
    main(["export", "runs/whole/checkpoints/last.ckpt", str(out)])
    exported = AutoModelForCausalLM.from_pretrained(out)
    for name, value in model.state_dict().items():
        assert torch.equal(exported.state_dict()[name], value), name
    with pytest.raises(UserError, match=r"^data.tokenizer|^--resume"):
        main(["fit", "--config", path, "--name", "parts", "--resume", "--data.add_tokens", '["<think>"]'])


def test_new_tokens_are_rejected_if_only_adapters_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(config(tmp_path))
    with pytest.raises(UserError) as caught:
        main(["fit", "--config", path, "--model.lora", "LoRA"])
    assert str(caught.value) == (
        "data.add_tokens: expected the rows of new tokens to be trained, but model.lora freezes everything except the "
        "adapters: '<think>', '</think>' would stay the mean of the other tokens; name the embeddings and the output "
        "layer in model.lora.modules_to_save, or train without model.lora"
    )
    with pytest.raises(UserError) as caught:
        main(["fit", "--config", path, "--model.lora", "LoRA", "--model.lora.modules_to_save", "[embed_tokens]"])
    assert str(caught.value) == (
        "model.lora.modules_to_save: expected embeddings and output layer with data.add_tokens, but the output layer "
        "would not be trained"
    )
    ends = ["--model.lora.modules_to_save", "[embed_tokens, lm_head]", "--model.lora.export", "adapter"]
    with pytest.raises(UserError) as caught:
        main(["fit", "--config", path, "--model.lora", "LoRA", *ends])
    assert str(caught.value) == (
        "model.lora.export: expected merged with data.add_tokens, because the base of the adapters has no rows for new "
        "tokens, got adapter"
    )
    assert not (tmp_path / "runs").exists()
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 8)
    module = ProbSFTModule(tiny.model(), NLL(), lora=LoRA(r=2))
    with pytest.raises(UserError, match=r"^data.add_tokens: expected the rows of new tokens to be trained"):
        tiny.trainer().fit(module, datamodule=tiny.data(rows, add_tokens=NEW))


@pytest.mark.parametrize("named", [False, True], ids=["its own", "another"])
def test_a_reference_has_the_same_new_rows(tmp_path: Path, named: bool) -> None:
    """The reference is the model before training, or is named by the same folder."""
    saved(tmp_path / "base", CONFIGS["tied"])
    saved(tmp_path / "other", CONFIGS["tied"])
    reference = Reference(str(tmp_path / "other")) if named else Reference()
    source = PretrainedCausalLM(str(tmp_path / "base"))
    module = ProbSFTModule(source, ASFT(), optimizer=tiny.sgd, reference=reference)
    module.teardown = lambda stage: None  # type: ignore[method-assign]  # teardown would release the reference
    rows = tiny.write_rows(tmp_path / "rows.jsonl", 8)
    data = tiny.data(rows, add_tokens=["1 "])
    tiny.trainer(max_steps=1).fit(module, datamodule=data)
    assert module.frozen_reference.loaded is not None
    frozen, fresh = module.frozen_reference.loaded.model, source.load(data.tokenizer, torch.bfloat16)
    assert frozen.get_output_embeddings().out_features == 260
    assert torch.equal(frozen.get_input_embeddings().weight, fresh.get_input_embeddings().weight)
