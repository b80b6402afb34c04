"""Each strategy from the command line: two processes train, save and export the same as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_probsft.analysis.tokens import Tokens
from lit_probsft.data import ByteTokenizer
from lit_probsft.model import RandomCausalLM
from lit_probsft.storage.checkpoint_files import damage, format_of, steps
from tests import tiny
from tests.crash.scene import Scene, exported, metrics
from tests.crash.server import Server

PLAIN = {
    "class_path": "RandomCausalLM",
    "init_args": {"config": tiny.LLAMA},
}  # no dropout, because other ranks would draw other masks
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}


@pytest.fixture(scope="module")
def single(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("smoke")
    path = str(tiny.write_rows(folder / "watched.jsonl", 3, seed=2))
    source = {"class_path": "Rows", "init_args": {"path": path, "prompt": "question", "response": "answer"}}
    changes: dict[str, Any] = {"model__model": PLAIN, "model__optimizer": SGD, "data__length_pool": 0}
    changes["data__watch"] = {"other": source}
    tasks = [{"class_path": "Exact", "init_args": {"path": path}}]
    changes["evaluation"] = {"tasks": tasks, "n": 2, "temperature": 1.0, "max_new_tokens": 4}
    scene = Scene(server, folder, data__batch_size=2, **changes)
    scene.fit("single", "--data.batch_size=4")
    return scene


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("ddp", "file"),
        ("fsdp2", "fsdp2"),
        ("deepspeed_stage_1", "deepspeed"),
        pytest.param("configs/parallel/zero2.yaml", "deepspeed", marks=pytest.mark.slow),
        pytest.param("configs/parallel/zero3.yaml", "deepspeed", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_the_same_as_one(single: Scene, strategy: str, kind: str) -> None:
    if kind == "deepspeed":
        pytest.importorskip("deepspeed")
    name = Path(strategy).stem
    flags = ["--trainer.strategy", strategy]
    if strategy.endswith(".yaml"):
        flags = ["--config", str(Path(__file__).parents[2] / strategy)]
    run = single.fit(name, *flags, "--trainer.devices=2")
    assert "Warning:" not in run.output, run.output
    answers = [single.run(each) / "evaluation" / "step-00000000.jsonl" for each in (name, "single")]
    assert answers[0].read_text() == answers[1].read_text()
    ours, expected = exported(single.run(name) / "hf"), exported(single.run("single") / "hf")
    for weight, value in expected.items():
        torch.testing.assert_close(ours[weight], value, rtol=1e-5, atol=1e-5, msg=lambda m, w=weight: f"{w}: {m}")
    checkpoints = [path for _, path in steps(single.checkpoints(name))]
    assert [format_of(path) for path in checkpoints] == [kind] * 2
    assert [damage(path) for path in checkpoints] == [None] * 2
    ours, expected = (metrics(single.run(which) / "metrics.csv") for which in (name, "single"))
    assert [row.keys() for row in ours] == [row.keys() for row in expected]
    for name_of in ("val/nll", "val/other/nll", "val/ece", "val/other/ece", "val/entropy"):
        assert float(ours[-1][name_of]) == pytest.approx(float(expected[-1][name_of]), rel=1e-4), name_of
    tokens, of_one = (Tokens(single.run(which) / "tokens.npz") for which in (name, "single"))
    for when in ("before", "after"):
        assert tokens.measured(when)
        np.testing.assert_allclose(getattr(tokens, when), getattr(of_one, when), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_stage_3"])
def test_a_model_that_lacks_weights_is_refused_under_sharding(single: Scene, tmp_path: Path, strategy: str) -> None:
    """transformers would initialize them at random."""
    if strategy != "fsdp2":
        pytest.importorskip("deepspeed")
    tokenizer = ByteTokenizer().load(list)
    RandomCausalLM(tiny.LLAMA).load(tokenizer, torch.float32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lacking = weights.pop("model.layers.0.self_attn.q_proj.weight")
    assert lacking.numel()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    flags = ["--trainer.strategy", strategy, "--trainer.devices=2", "--model.model", str(tmp_path)]
    run = single.fit(f"lacks-{strategy}", *flags, status=2)
    weight = "model.layers.0.self_attn.q_proj.weight"
    assert f"expected all weights of the model, but {str(tmp_path)!r} lacks {weight}" in run.output
