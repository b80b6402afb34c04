"""An exported folder is complete, and others may read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lit_probsft.data import ByteTokenizer
from lit_probsft.data.tokens.tokenizers import read_tokenizer
from lit_probsft.run.export import export_model
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
