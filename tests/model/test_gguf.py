"""A GGUF file is a model like any other: it is loaded, trained, saved, resumed and exported."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from lit_probsft.cli import main
from lit_probsft.data.tokens.tokenizers import read_tokenizer
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.storage.gguf import GGUF, gguf_at
from tests import tiny
from tests.gguf_files import TEMPLATE, write_gguf

gguf = pytest.importorskip("gguf")


def test_weights_and_tokenizer_are_those_of_the_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    model = PretrainedCausalLM(str(file)).load(None, torch.float32)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}["blk.1.ffn_up.weight"]
    expected = torch.tensor(gguf.quants.dequantize(stored.data, stored.tensor_type))
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight.detach(), expected)
    assert not model.is_quantized
    assert not hasattr(model.config, "quantization_config")
    tokenizer = read_tokenizer(str(tmp_path))  # the folder means the file
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.decode(tokenizer("the end")["input_ids"]) == "the end"


def test_a_name_means_a_file_only_where_no_other_model_is(tmp_path: Path) -> None:
    assert gguf_at("org/repo/sub/x.gguf") == GGUF("org/repo", "sub/x.gguf")
    assert gguf_at("org/repo") is None
    assert gguf_at(str(tmp_path / "none.gguf")) is None
    (tmp_path / "x.gguf").write_bytes(b"")
    assert gguf_at(str(tmp_path)) == gguf_at(str(tmp_path / "x.gguf")) == GGUF(str(tmp_path), "x.gguf")
    (tmp_path / "config.json").write_text("{}")
    assert gguf_at(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("cut", "damaged"),
        ("empty", "damaged"),
        ("text", "damaged"),
        ("architecture", "architecture foo is not supported"),
        ("clip", "holds a projector"),
        ("split", "one of 3 parts"),
        ("part", "is a part"),
        ("two", "m.gguf, n.gguf; name one"),
        ("missing", r"pip install \"lit_probsft\[gguf\]\""),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, change: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"architecture": "foo"} if change == "architecture" else {}
    fields |= {"architecture": "clip"} if change == "clip" else {}
    fields |= {"split.count": 3} if change == "split" else {}
    file = write_gguf(tmp_path / "m.gguf", "F16", **fields)
    if change in ("cut", "empty"):
        file.write_bytes(file.read_bytes()[: -500 if change == "cut" else 0])
    if change == "text":
        file.write_bytes(file.read_bytes().replace(TEMPLATE[:4].encode(), b"\xff\xff\xff\xff"))
    if change == "part":
        file = file.rename(tmp_path / "m-00001-of-00003.gguf")
    if change == "two":
        shutil.copy(file, tmp_path / "n.gguf")
    if change == "missing":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    source = PretrainedCausalLM(str(tmp_path if change == "two" else file))
    for load, place in (
        (lambda: source.load(None, torch.float32), "model.model.model_name_or_path: "),
        (lambda: read_tokenizer(source.name), "name_or_path: "),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load()
        assert str(caught.value).startswith(place)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_adapters_over_a_file_are_trained_resumed_exported_and_used(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "m.gguf", "F16")
    tiny.write_rows(tmp_path / "train.jsonl", 16)
    flags = (
        "--model.model m.gguf --model.lora LoRA --data.train train.jsonl --data.train.prompt question"
        f" --data.train.response answer --data.validation_fraction 0.25 --data.batch_size 4 --model.lora.export {form}"
        " --name r --trainer.accelerator cpu --trainer.enable_progress_bar false --model.generation.max_new_tokens 3"
    ).split()
    main(["fit", *flags, "--trainer.max_steps", "1", "--dry_run"])
    main(["fit", *flags, "--trainer.max_steps", "1"])
    main(["fit", *flags, "--trainer.max_steps", "2", "--resume"])
    main(["export", "runs/r/checkpoints/last.ckpt", "out", "--base", "m.gguf", "--dtype", "bfloat16"])
    hf, out = (PretrainedCausalLM(name).load(None, torch.float32) for name in ("runs/r/hf", "out"))
    for name, value in hf.state_dict().items():
        torch.testing.assert_close(out.state_dict()[name], value, rtol=1e-2, atol=1e-2)
    assert "after optimizer step 2" in (tmp_path / "out" / "README.md").read_text()
    if form == "adapter":
        return
    assert json.loads((tmp_path / "runs" / "r" / "hf" / "config.json").read_text())["dtype"] == "float16"
    for command in ("validate", "preview", "capability"):
        flag = ["--weights", "m.gguf"] if command == "validate" else []
        main([command, *flags, *flag])
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    main(["chat", "m.gguf", "--max-new-tokens", "2"])
