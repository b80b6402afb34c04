"""A model folder with wrong contents ends in one message of one line, or is loaded."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_probsft.data import ByteTokenizer
from lit_probsft.errors import UserError
from lit_probsft.evaluation.models import load_model
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.model.loading import report_load_errors
from lit_probsft.model.lora import LoRA
from lit_probsft.model.lora_injection import inject_adapters
from lit_probsft.run.export import export_model
from tests import tiny

VALUES: list[Any] = [None, [], {}, "abc", "", -1, 0, 1e30, 10**30, 2**31, True, [1], {"a": 1}, "../../x", 3.5, [[]]]
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model in two shards, `model`, and adapters of it, `adapter`."""
    folder = tmp_path_factory.mktemp("folders")
    tokenizer, model = ByteTokenizer().load(list), tiny.model()
    model.generation_config.update(repetition_penalty=1.1, eos_token_id=[258])
    export_model(model, tokenizer, folder / "model")
    weights = load_file(folder / "model" / "model.safetensors")
    (folder / "model" / "model.safetensors").unlink()
    shards = {"a.safetensors": sorted(weights)[::2], "b.safetensors": sorted(weights)[1::2]}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / "model" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    inject_adapters(model, LoRA(export="adapter"))
    base = PretrainedCausalLM(str(folder / "model"))
    export_model(model, tokenizer, folder / "adapter", lora=LoRA(export="adapter"), base=base)
    return folder


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON document with its keys; of long ones a few."""
    items = list(content.items() if isinstance(content, dict) else enumerate(content))
    found = [(content, key) for key, _ in items]
    for _, value in items[:40]:
        if isinstance(value, dict | list):
            found += places(value)[:60]
    return found


def damage(folder: Path, seed: int) -> str:
    """Change one file of a folder; returns what was done."""
    rng = random.Random(seed)
    file = folder / rng.choice([name for name in FILES if (folder / name).exists()] * 4 + ["weights"])
    if file.name == "weights":
        file = rng.choice(sorted(folder.glob("*.safetensors")))
        if rng.random() < 0.5:
            data = bytearray(file.read_bytes())
            del data[rng.randrange(len(data)) :]
            file.write_bytes(data)
            return f"{file.name} truncated"
        weights = load_file(file)
        name = rng.choice(sorted(weights))
        changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
            lambda t: t[:1],
            lambda t: t.long(),
            lambda t: t.T[None],
        ]
        weights[name] = rng.choice(changes)(weights[name]).contiguous()
        save_file(weights, file, metadata={"format": "pt"})
        return f"{file.name}: {name} {weights[name].shape} {weights[name].dtype}"
    if rng.random() < 0.2:
        text = rng.choice(["", "{", "[]", "3", "null", '"a"', "[" * 100_000, "\udcff", "{}"])
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        return f"{file.name} = {text[:10]!r}"
    content = json.loads(file.read_text())
    container, key = rng.choice(places(content))
    container[key] = value = rng.choice(VALUES)
    file.write_text(json.dumps(content))
    return f"{file.name}: {key} = {value!r}"


def outcome(folder: Path) -> str:
    """The message of loading it to chat and to train; raises what is no message."""
    messages = []
    for load in (
        lambda: load_model(str(folder), torch.device("cpu"), "float32"),
        lambda: PretrainedCausalLM(str(folder)).load(None, torch.float32),
    ):
        try:
            load()
        except UserError as error:
            messages.append(str(error))
    return "\n\n".join(messages)


@pytest.mark.slow
def test_any_damage_ends_in_one_line_or_in_a_model(folders: Path, tmp_path: Path) -> None:
    failures = []
    for seed in range(150):
        folder = tmp_path / "m"
        shutil.copytree(folders / ("adapter" if seed % 5 == 0 else "model"), folder)
        done = damage(folder, seed)
        try:
            message = outcome(folder)
        except Exception as error:
            failures.append(f"{seed}: {done}: {type(error).__name__}: {str(error)[:200]}")
        else:
            if any("\n" in part for part in message.split("\n\n")):
                failures.append(f"{seed}: {done}: {message}")
        shutil.rmtree(folder)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": "../../x"}, "names '../../x', which is not a file in the same folder"),
        ({"a": "c.safetensors"}, "names 'c.safetensors', which does not exist"),
        ({"a": 3}, "is not an index of weights"),
        (["a"], "is not an index of weights"),
        ({}, "is not an index of weights"),
    ],
)
def test_an_index_names_files_of_its_folder(folders: Path, tmp_path: Path, change: Any, words: str) -> None:
    shutil.copytree(folders / "model", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": change}))
    with pytest.raises(UserError, match=words):
        PretrainedCausalLM(str(tmp_path / "m")).load(None, torch.float32)


@pytest.mark.parametrize("pad", [259, -1, 10**6, 3])
def test_a_padding_token_outside_the_model_is_left_out(folders: Path, tmp_path: Path, pad: int) -> None:
    shutil.copytree(folders / "model", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
    model = PretrainedCausalLM(str(tmp_path / "m")).load(None, torch.float32)
    assert model.config.pad_token_id == (3 if pad == 3 else None)


def test_errors_of_the_machine_are_not_taken_for_damage() -> None:
    for kind in (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError, torch.distributed.DistError):
        with pytest.raises(kind), report_load_errors("m", None):
            raise kind("of the machine")
