"""Configurations of earlier versions name modules by their old import paths."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from lit_probsft.cli.config.moved import MOVED, register_moved_modules
from lit_probsft.cli.parts import parts_of
from lit_probsft.errors import UserError
from lit_probsft.model.lora import LoRA
from tests import tiny


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_gives_the_new_modules_objects(old: str) -> None:
    register_moved_modules()
    new = import_module(f"lit_probsft.{MOVED[old]}")
    defined = [name for name, value in vars(new).items() if getattr(value, "__module__", None) == new.__name__]
    names = getattr(new, "__all__", defined)
    assert names
    for name in names:
        assert getattr(import_module(f"lit_probsft.{old}"), name) is getattr(new, name)


def test_an_unknown_name_of_an_old_path_is_an_attribute_error() -> None:
    register_moved_modules()
    with pytest.raises(AttributeError, match="Nonesuch"):
        _ = import_module("lit_probsft.lora").Nonesuch


def test_a_configuration_with_old_paths_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_rows(tmp_path / "train.jsonl", 4)
    old = {
        "model": {
            "class_path": "lit_probsft.ProbSFTModule",
            "init_args": {
                "model": {"class_path": "lit_probsft.model.RandomCausalLM", "init_args": {"config": tiny.LLAMA}},
                "objective": {"class_path": "lit_probsft.objectives.NLL"},
                "optimizer": "lit_probsft.module.default_optimizer",
                "lora": {"class_path": "lit_probsft.lora.LoRA", "init_args": {"r": 4}},
            },
        },
        "data": {
            "class_path": "lit_probsft.InstructionDataModule",
            "init_args": {
                "train": {"class_path": "lit_probsft.data.sources.Rows", "init_args": {"path": "train.jsonl"}},
                "tokenizer": {
                    "class_path": "lit_probsft.data.tokenizers.PretrainedTokenizer",
                    "init_args": {"name_or_path": "./no_such_folder"},
                },
            },
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(old))
    module, data, _, _ = parts_of(["--config", "config.yaml"])
    optimizer = module.optimizer_factory([torch.nn.Parameter(torch.zeros(2, 2))])
    assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.AdamW, 2e-5)
    assert module.lora == LoRA(r=4)
    with pytest.raises(UserError, match=r"data\.tokenizer\.name_or_path: .*no_such_folder"):
        _ = data.tokenizer
