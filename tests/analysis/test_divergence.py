"""`divergence` against a plain loop over full logits, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_probsft.analysis.divergence import measure_divergence
from lit_probsft.cli.commands import main
from lit_probsft.cli.divergence import _check_tokens
from lit_probsft.data import ByteTokenizer
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from tests import tiny
from tests.cli.test_fit import config


def folder(path: Path, seed: int = 0, tokenizer: Any = None, **fields: Any) -> str:
    """A model with its tokenizer."""
    tiny.model(seed=seed, **fields).save_pretrained(path)
    (tokenizer or ByteTokenizer().load(list)).save_pretrained(path)
    return str(path)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return config(tmp_path, data__eval_batch_size=4)


def plain(a: Any, b: Any, datamodule: Any) -> dict[int, dict[str, torch.Tensor]]:
    """Token values of each document, one document at a time, in float64."""
    found = {}
    for batch in datamodule.val_dataloader():
        for document, ids, labels in zip(
            batch["documents"].tolist(), batch["input_ids"], batch["labels"], strict=False
        ):
            kept = labels[1:] != -100
            with torch.no_grad():
                log_a, log_b = (m(input_ids=ids[None]).logits[0, :-1][kept].log_softmax(-1) for m in (a, b))
            target = labels[1:][kept][:, None]
            found[document] = {
                "forward_kl": (log_a.exp() * (log_a - log_b)).sum(-1),
                "reverse_kl": (log_b.exp() * (log_b - log_a)).sum(-1),
                "nll_a": -log_a.gather(-1, target)[:, 0],
                "nll_b": -log_b.gather(-1, target)[:, 0],
            }
    return found


def test_by_default_the_trained_model_is_compared_with_its_base_as_by_a_plain_loop(path: Path) -> None:
    trained = main(["fit", "--config", str(path)])
    content = main(["divergence", "--config", str(path), "--dtype", "float64"])
    assert json.loads(Path("runs/tiny/divergence.json").read_text()) == content
    b = AutoModelForCausalLM.from_pretrained("runs/tiny/hf", dtype=torch.float64)
    a = tiny.model().double()
    expected = plain(a.eval(), b.eval(), trained.datamodule)
    assert (content["model_a"], content["model_b"]) == ("llama from random weights (seed 0)", "runs/tiny/hf")
    assert content["examples"] == len(content["by_example"]) == 6
    assert [each["row"] for each in content["by_example"]] == list(range(6))
    for each in content["by_example"]:
        values = expected[each["document"]]
        assert each["tokens"] == len(values["nll_a"])
        for name, value in values.items():
            assert each[name] == pytest.approx(float(value.mean()), rel=1e-5)
    for name in ("forward_kl", "reverse_kl", "nll_a", "nll_b"):
        whole = torch.cat([values[name] for values in expected.values()])
        assert content["tokens"] == len(whole)
        assert content[name] == pytest.approx(float(whole.mean()), rel=1e-5)
    assert content["nll_b"] == pytest.approx(float(trained.trainer.callback_metrics["val/nll"]), rel=1e-5)
    assert 0 < content["js"] < content["forward_kl"]


@pytest.mark.slow
def test_swapping_two_models_mirrors_the_values(path: Path, tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", seed=1)
    command = ["divergence", "--config", str(path), "--split", "train", f"--out={tmp_path / 'out.json'}"]
    one = main([*command, "--model-a", a, "--model-b", b])
    other = main([*command, f"--model-a={b}", f"--model-b={a}"])
    assert one["examples"] == 24
    for name, mirrored in (("forward_kl", "reverse_kl"), ("nll_a", "nll_b"), ("mean_p_a", "mean_p_b"), ("js", "js")):
        assert one[name] == pytest.approx(other[mirrored], rel=1e-12)
    assert json.loads((tmp_path / "out.json").read_text()) == other
    assert not Path("runs").exists()
    assert main([*command, "--model-a", a, "--model-b", "base"])["forward_kl"] == 0


def test_a_batch_of_padding_has_no_document() -> None:
    empty = {"input_ids": torch.zeros(1, 1, dtype=torch.long), "labels": torch.full((1, 1), -100)}
    real = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[-100, 2, 3]])}
    batches = [{**empty, "documents": torch.empty(0, dtype=torch.long)}, {**real, "documents": torch.tensor([7])}]
    found = measure_divergence(tiny.model(), tiny.model(seed=1), batches)
    assert found.documents.tolist() == [7]
    assert found.of_each() == [{"document": 7, "tokens": 2, **found.mean()}]


def test_models_with_other_tokens_are_refused(path: Path, tmp_path: Path) -> None:
    data = ByteTokenizer().load(list)
    other = ByteTokenizer().load(list)
    other.add_tokens(["<new>"])
    _check_tokens("--model-a", PretrainedCausalLM(folder(tmp_path / "same")), data)
    with pytest.raises(UserError, match=r"--model-a: .* differs in 1 tokens, first in '<new>' \(\d+\)"):
        _check_tokens("--model-a", PretrainedCausalLM(folder(tmp_path / "tokens", tokenizer=other)), data)
    tiny.model().save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="--model-b: expected .* that holds a tokenizer, got"):
        _check_tokens("--model-b", PretrainedCausalLM(str(tmp_path / "bare")), data)
    wider = folder(tmp_path / "wider", vocab_size=1000)
    with pytest.raises(UserError, match=r"--model-b: expected a vocabulary of \d+ tokens, as --model-a has, got 1000"):
        main(["divergence", "--config", str(path), "--model-b", wider])


def test_wrong_flags_are_refused_before_anything_is_read(path: Path) -> None:
    for flags, words in (
        ([], "--model-b: runs/tiny/hf does not exist"),
        (["--out", "no/where.json"], "--out: expected a file in an existing folder"),
        (["--split", "all"], "--split: expected one of train, validation, test, got 'all'"),
    ):
        with pytest.raises(UserError, match=words):
            main(["divergence", "--config", str(path), *flags])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--split", "test"], "data.test: expected a source of rows"),
        (["--split", "train", "--data.streaming", "true"], "--split: expected validation or test, since a stream"),
        (["--model.objectve", "NLL"], "objectve"),
    ],
)
def test_a_configuration_is_refused_as_fit_refuses_it(path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        main(["divergence", "--config", str(path), "--model-b", "base", *flags])
