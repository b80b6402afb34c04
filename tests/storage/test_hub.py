"""Code that comes with a model or a tokenizer runs only if the user allows it, and a warning names it."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.cli.commands import main
from lit_probsft.data import ByteTokenizer, PretrainedTokenizer
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.storage import hub as remote
from tests import tiny

CONFIGURATION = """
from transformers import LlamaConfig


class OddConfig(LlamaConfig):
    model_type = "odd"
"""
MODELING = """
from pathlib import Path

from transformers import LlamaForCausalLM

from .configuration_odd import OddConfig

with open({ran!r}, "a") as file:
    file.write("ran ")


class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""
TOKENIZATION = """
from transformers import PreTrainedTokenizerFast

with open({ran!r}, "a") as file:
    file.write("tokenized ")


class OddTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose model and tokenizer need code of their own, which leaves a trace when it runs."""
    import transformers.dynamic_module_utils

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    remote.warn_of_code.cache_clear()
    folder, ran = tmp_path / "odd", str(tmp_path / "ran")
    tiny.model().save_pretrained(folder)
    ByteTokenizer().load(list).save_pretrained(folder)
    classes = {"AutoConfig": "configuration_odd.OddConfig", "AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}
    change(folder / "config.json", model_type="odd", architectures=["OddForCausalLM"], auto_map=classes)
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="OddTokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_odd.OddTokenizer"]},
    )
    (folder / "configuration_odd.py").write_text(CONFIGURATION)
    (folder / "modeling_odd.py").write_text(MODELING.format(ran=ran))
    (folder / "tokenization_odd.py").write_text(TOKENIZATION.format(ran=ran))
    return folder


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


CODE = "configuration_odd.py, modeling_odd.py, tokenization_odd.py"


def refusal(argument: str, folder: Path) -> str:
    return (
        f"{argument}: expected true, because {str(folder)!r} needs code of its own ({CODE}); got false. Read that "
        "code, pin it with `revision`, and set this to true if you trust it"
    )


def flags(folder: Path) -> list[str]:
    rows = tiny.write_rows(folder.parent / "rows.jsonl", 8)
    data: list[str] = []
    for part in ("--data.train", "--data.validation"):
        data += [part, "Rows", f"{part}.path", str(rows), f"{part}.prompt", "question", f"{part}.response", "answer"]
    return ["--name", "run", "--model.model", str(folder), *data, "--trainer.accelerator", "cpu"]


def test_code_does_not_run_by_default_and_the_error_names_the_flag(odd: Path) -> None:
    with pytest.raises(UserError) as caught:
        PretrainedCausalLM(str(odd)).load(None, torch.float32)
    assert str(caught.value) == refusal("model.model.trust_remote_code", odd)
    with pytest.raises(UserError) as caught:
        PretrainedTokenizer(str(odd)).load(list)
    assert str(caught.value) == refusal("trust_remote_code", odd)
    with pytest.raises(UserError) as caught:
        main(["fit", *flags(odd)])
    said = refusal("model.model.trust_remote_code", odd)
    assert str(caught.value) == f"{said} (data.tokenizer is not given, so the tokenizer comes from the model)"
    with pytest.raises(UserError) as caught:
        reference = ["--model.reference.model", str(odd), "--model.objective", "ASFT"]
        main(["fit", *flags(plain(odd)), *reference])
    assert str(caught.value) == refusal("model.reference.model.trust_remote_code", odd)
    assert not (odd.parent / "ran").exists()


def plain(odd: Path) -> Path:
    """The same model and tokenizer without code."""
    folder = odd.parent / "plain"
    tiny.model().save_pretrained(folder)
    ByteTokenizer().load(list).save_pretrained(folder)
    return folder


def test_code_runs_when_allowed_and_is_named_once(odd: Path) -> None:
    source = ["--model.model", "PretrainedCausalLM", "--model.model.model_name_or_path", str(odd)]
    asked = [*flags(odd), *source, "--model.model.trust_remote_code", "true"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cli = main(["fit", *asked])
    assert type(cli.model.model).__name__ == "OddForCausalLM"
    assert set((odd.parent / "ran").read_text().split()) == {"ran", "tokenized"}
    loud = [str(warning.message) for warning in caught if "WILL RUN" in str(warning.message)]
    code = f"WILL RUN ON THIS MACHINE with all your rights: {CODE}"
    assert loud == [
        f"trust_remote_code: code that comes with {odd} {code}",
        f"model.model.trust_remote_code: code that comes with {odd} {code}",
    ]
    main(["validate", *asked])  # with the weights, the tokenizer and the code of the run
    # The exported model needs the code, too, and has a copy of it.
    hf = odd.parent / "runs" / "run" / "hf"
    shutil.rmtree(odd)
    with pytest.raises(UserError, match=r"^model.model.trust_remote_code: expected true, .* \(.*modeling_odd.py"):
        PretrainedCausalLM(str(hf)).load(None, torch.float32)
    again = PretrainedCausalLM(str(hf), trust_remote_code=True).load(None, torch.float32)
    for name, value in tiny.weights(cli.model).items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_model_without_code_causes_no_warning(odd: Path) -> None:
    folder = plain(odd)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PretrainedCausalLM(str(folder), trust_remote_code=True).load(None, torch.float32)
        PretrainedTokenizer(str(folder), trust_remote_code=True).load(list)
    assert not [warning for warning in caught if "WILL RUN" in str(warning.message)]


def test_the_warning_names_the_repository_that_code_comes_from(odd: Path) -> None:
    change(odd / "config.json", auto_map={"AutoConfig": "you/there--configuration_there.TheirConfig"})
    with pytest.warns(match=r"configuration_there.py of you/there, .*; no revision pins configuration_there"):
        remote.warn_of_code("x", str(odd))


def test_a_misspelt_folder_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    assert remote.missing_path("runs/quickstrt") == "no such folder: 'runs/quickstrt'. Did you mean 'quickstart'?"
    for place in ("runs/quickstart", "me/model", "gpt2", "me/model/x.gguf"):
        assert remote.missing_path(place) is None
    for place in ("./gpt2", "a/b/c", "runs/something-else"):
        assert remote.missing_path(place) == f"no such folder: {place!r}."
    for place in ("last.ckpt", "./x.gguf", "me/x.gguf"):
        assert remote.missing_path(place) == f"no such file: {place!r}."
