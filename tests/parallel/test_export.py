"""A model exported from any kind of checkpoint equals the trained model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_probsft.storage.checkpoint_files import steps
from tests import tiny
from tests.crash.scene import Scene, difference, exported
from tests.crash.server import Server
from tests.parallel.reading import DEEPSPEED, weights

pytestmark = pytest.mark.slow

IDS = torch.arange(5, 45).view(2, 20)


def two(strategy: str) -> dict[str, Any]:
    return {"trainer__strategy": strategy, "trainer__devices": 2, "data__batch_size": 2}


KINDS: dict[str, dict[str, Any]] = {
    "file": {},
    "fsdp2": two("fsdp2"),
    "zero2": two("deepspeed_stage_2"),
    "zero3": two("deepspeed_stage_3"),
}
"""The kinds of checkpoint, with the settings that write them; a step always has eight documents."""
LORA = {"r": 4, "alpha": 32.0}


def kinds(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=[DEEPSPEED] * name.startswith("zero")) for name in names]


def options(kind: str, *, tied: bool = False, lora: bool = False) -> dict[str, Any]:
    """Settings of a run without dropout, because two processes would draw other masks than one."""
    fields = {**tiny.LLAMA, "tie_word_embeddings": tied}
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2, "eps": 1e-4, "weight_decay": 0.5}}
    return {
        "model__model": {"class_path": "RandomCausalLM", "init_args": {"config": fields}},
        "model__optimizer": adam,
        **({"model__lora": LORA} if lora else {}),
        **KINDS[kind],
    }


def logits(model: Any) -> torch.Tensor:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        return model.eval()(IDS).logits


def trained(folder: Path, found: dict[str, torch.Tensor], lora: bool) -> Any:
    """A model with the exported configuration and a checkpoint's weights; adapters are not merged."""
    import peft

    empty = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(folder).config)
    if lora:  # the checkpoint holds only the adapters
        # DeepSpeed also stores a tied weight under its second name.
        assert {name for name in found if ".lora_" not in name} <= {"lm_head.weight"}
        empty = tiny.model(tie_word_embeddings=empty.config.tie_word_embeddings)
        adapters = peft.LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], target_modules="all-linear")
        empty = peft.inject_adapter_in_model(adapters, empty)
        assert all(value.abs().max() > 1e-4 for name, value in found.items() if ".lora_B." in name)
    missing, unexpected = empty.load_state_dict(found, strict=False)
    tied = empty.config.tie_word_embeddings
    missing = [name for name in missing if not lora or ".lora_" in name]
    assert set(missing) <= {"lm_head.weight"} if tied else not missing, missing
    assert not unexpected
    return empty


@pytest.fixture(scope="module")
def scenes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Scene]:
    """A scene with a completed run for each kind of checkpoint."""
    made: dict[tuple[str, bool, bool], Scene] = {}

    def scene(kind: str, tied: bool, lora: bool) -> Scene:
        key = (kind, tied, lora)
        if key not in made:
            changes = {"trainer__max_epochs": 1, "data__validation": None, **options(kind, tied=tied, lora=lora)}
            made[key] = Scene(server, tmp_path_factory.mktemp(kind), **changes)
            made[key].fit("run")
        return made[key]

    return scene


VARIANTS = pytest.mark.parametrize(
    ("tied", "lora"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["plain", "tied", "lora", "tied lora"],
)


@VARIANTS
@pytest.mark.parametrize("kind", kinds([*KINDS]))
def test_export_of_a_checkpoint_equals_the_trained_model(
    scenes: Callable[..., Scene], kind: str, tied: bool, lora: bool
) -> None:
    scene = scenes(kind, tied, lora)
    checkpoint, out = scene.checkpoints("run") / "last.ckpt", scene.folder / "out"
    run = scene.watched(scene.folder, "export", checkpoint, out)
    assert run.wait() == 0, run.output
    assert "Traceback" not in run.output
    exported(out)
    assert AutoTokenizer.from_pretrained(out).chat_template

    ours, hf = AutoModelForCausalLM.from_pretrained(out), AutoModelForCausalLM.from_pretrained(scene.run("run") / "hf")
    for model in (ours, hf):
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    torch.testing.assert_close(logits(ours), logits(hf), rtol=0, atol=1e-6)
    original = trained(out, weights(checkpoint), lora)
    torch.testing.assert_close(logits(ours), logits(original), rtol=0, atol=1e-5 if lora else 1e-6)
    start = tiny.model(tie_word_embeddings=tied)
    assert (logits(ours) - logits(start)).abs().max() > 1e-2, "nothing was trained"


@VARIANTS
@pytest.mark.parametrize("kind", kinds([kind for kind in KINDS if kind != "file"]))
def test_two_processes_export_the_same_model_as_one(
    scenes: Callable[..., Scene], kind: str, tied: bool, lora: bool
) -> None:
    one, several = (scenes(k, tied, lora).run("run") / "hf" for k in ("file", kind))
    torch.testing.assert_close(exported(several), exported(one), rtol=0, atol=1e-5)
    texts = [(folder / "config.json").read_text() for folder in (one, several)]
    assert texts[0] == texts[1]


# --- exports during training


class Runs:
    """Runs that differ in when they export; all checkpoints are kept."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        for when in ("every", "best", "none", "final"):
            scene.fit(when, "--checkpoints.export", when)
        self.steps = [step for step, _ in steps(scene.checkpoints("every"))]
        with (scene.run("every") / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["val/nll"] and row["epoch"]]
        self.nll = {int(row["step"]) + 1: float(row["val/nll"]) for row in rows}

    def hf(self, when: str) -> dict[str, torch.Tensor]:
        return exported(self.scene.run(when) / "hf")

    def at(self, step: int) -> dict[str, torch.Tensor]:
        """The weights in the checkpoint of a step."""
        return weights(self.scene.checkpoints("every") / f"step-{step:08d}.ckpt")


@pytest.fixture(scope="module", params=["file", "fsdp2"])
def runs(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """With a learning rate so high that the model alternately improves and gets worse."""
    changes = {
        **options(request.param),
        "model__optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0, "eps": 1e-6}},
        "model__schedule": {"decay": "constant", "warmup": 9.0},
        "trainer__max_epochs": 4,
        "checkpoints__keep_last": 100,
    }
    return Runs(Scene(server, tmp_path_factory.mktemp(request.param), **changes))


def test_export_every_exports_each_checkpoint(runs: Runs) -> None:
    folder = runs.scene.run("every") / "hf-steps"
    assert {2, 4, 6, 8, 10, 12} <= set(runs.steps)
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:08d}" for step in runs.steps]
    for step in runs.steps:
        assert not difference(exported(folder / f"step-{step:08d}"), runs.at(step)), step
    assert not difference(runs.hf("every"), runs.at(runs.steps[-1]))
    assert difference(runs.at(runs.steps[-2]), runs.at(runs.steps[-1]))


def test_export_best_exports_the_best_model(runs: Runs) -> None:
    assert sorted(runs.nll) == [3, 6, 9, 12]
    best = min(runs.nll, key=runs.nll.__getitem__)
    assert best not in (min(runs.nll), max(runs.nll)), runs.nll
    assert not difference(runs.hf("best"), runs.at(best))
    assert not (runs.scene.run("best") / "hf-steps").exists()
    card = (runs.scene.run("best") / "hf" / "README.md").read_text()
    assert "lit_probsft" in card


def test_export_none_exports_no_model(runs: Runs) -> None:
    run = runs.scene.run("none")
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert not (run / "hf").exists()
    assert not (run / "hf-steps").exists()
    assert not difference(weights(run / "checkpoints/last.ckpt"), runs.at(12))


def test_export_final_exports_the_last_model(runs: Runs) -> None:
    assert not difference(runs.hf("final"), runs.at(12))
    assert not (runs.scene.run("final") / "hf-steps").exists()
