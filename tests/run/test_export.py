"""An exported folder is complete, and others may read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_probsft.data import ByteTokenizer
from lit_probsft.data.tokens.tokenizers import read_tokenizer
from lit_probsft.model.lora import LoRA
from lit_probsft.run.export import export_model, write_model
from tests import tiny


def test_named_templates_are_kept_and_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer().load(list)
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    before = os.umask(0o027)
    try:
        export_model(tiny.model(), tokenizer, tmp_path / "m")
    finally:
        os.umask(before)
    assert read_tokenizer(str(tmp_path / "m")).chat_template == tokenizer.chat_template
    files = [file for file in (tmp_path / "m").rglob("*") if file.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}
    assert "model.safetensors" in {file.name for file in files}


@pytest.mark.parametrize("asked", [torch.float32, torch.float16, None])
def test_the_dtype_that_is_asked_for_holds_for_modules_that_were_widened_for_training(tmp_path: Path, asked) -> None:
    model = tiny.model().to(torch.bfloat16)
    weights = {k: v.float() if "lm_head" in k else v for k, v in model.state_dict().items()}
    write_model(tmp_path / "m", model, weights, {}, {}, LoRA(modules_to_save=["lm_head"]), asked)
    written = load_file(tmp_path / "m" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {asked or torch.bfloat16}
