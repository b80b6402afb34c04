"""A resumed run ends the same as an uninterrupted one: bit for bit on the same number of processes, up to rounding on
another number. A checkpoint that cannot be resumed is refused."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.parallel.stopping import STOPPED
from lit_probsft.storage.checkpoint_files import steps
from tests import tiny
from tests.crash.scene import Scene, difference, documents, exported, metrics, restarts
from tests.crash.server import Run, Server
from tests.parallel.reading import DEEPSPEED, content

pytestmark = pytest.mark.slow

WINDOWS = 3
"""Optimizer steps in an epoch, of eight documents each."""
WRITES = "before replace checkpoints/.step-N.ckpt.partial"
"""The point at which a checkpoint is complete but does not have its final name yet."""


def two(strategy: str) -> dict[str, Any]:
    return {"trainer__strategy": strategy, "trainer__devices": 2, "data__batch_size": 2}


STREAM = {
    "data__streaming": True,
    "data__shuffle_buffer": 16,
    "trainer__max_epochs": None,
    "trainer__max_steps": 2 * WINDOWS,
}
"""A block of the stream has two steps and the rows have three; with packing, blocks vary in length."""

ADAPTERS = {"model__lora": {"r": 4, "dora": True, "dropout": 0.1, "modules_to_save": ["embed_tokens"]}}
"""The checkpoints of adapters leave out the base model."""

SETUPS: dict[str, dict[str, Any]] = {
    "one": {},
    "one, workers": {"data__num_workers": 1, "data__validation": None},
    "one, not validated": {"data__validation": None},
    "one, validated every other epoch": {"trainer__check_val_every_n_epoch": 2},
    "one, by steps": {"data__validation": None, "trainer__max_epochs": -1, "trainer__max_steps": 2 * WINDOWS},
    "one, saved after epochs": {"data__validation": None, "checkpoints__save_every": None, "trainer__max_epochs": 4},
    "ddp": two("ddp"),
    "fsdp2": two("fsdp2"),
    "one, adapters": ADAPTERS,
    "fsdp2, adapters": {**two("fsdp2"), **ADAPTERS},
    "zero3, adapters": {**two("deepspeed_stage_3"), "model__lora": {"r": 4, "modules_to_save": ["embed_tokens"]}},
    "stream": STREAM,
    "stream, packed, workers": {
        **STREAM,
        "data__packing": True,
        "data__max_length": 96,
        "data__batch_size": 2,
        "data__num_workers": 2,
    },
    "stream, ddp": {**two("ddp"), **STREAM},
    **{f"zero{stage}": two(f"deepspeed_stage_{stage}") for stage in (1, 2, 3)},
}
"""Settings of runs, all with the dropout and the two micro-batches per step of `Scene`."""
RESTARTS: dict[str, list[int]] = {
    # After each step, within and at the end of an epoch; once without progress since the last restart.
    "one": [1, 2, 2, 3, 4, 5],
    "one, workers": [2],
    "stream": [1, 2, 2, 3, 5],
    "one, saved after epochs": [3, 9],
}
"""The steps completed at each restart; END_AND_MIDDLE for all other setups."""
END_AND_MIDDLE = [WINDOWS, 5]
"""Restarts at the end and in the middle of an epoch; the second shows whether the first restored the counters."""


def named(setups: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, marks=[DEEPSPEED] * name.startswith("zero")) for name in setups]


class Whole(Scene):
    """A scene with an uninterrupted run, which also compares checkpoints of all kinds."""

    def __init__(self, server: Server, folder: Path, **changes: Any) -> None:
        settings = {"trainer__max_epochs": 2, "checkpoints__save_every": 1}
        super().__init__(server, folder, **{**settings, **changes})
        self.fit("whole")

    @property
    def ranks(self) -> int:
        return len([*self.folder.glob("runs/whole.*.diary")])

    def end(self, name: str) -> dict[str, Any]:
        run = self.run(name)
        record = json.loads((run / "run.json").read_text())
        clocked = record["metrics"].pop("tokens_per_second", None)
        assert clocked is None or clocked > 0
        return {
            "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
            "exported": exported(run / "hf"),
            "checkpoints": {path.name: content(path) for _, path in steps(self.checkpoints(name))},
            "best": content(self.checkpoints(name) / "best.ckpt") if (run / "checkpoints/best.ckpt").exists() else None,
            "metrics": metrics(run / "metrics.csv"),
            "record": {key: record[key] for key in ("status", "counts", "metrics", "initial_metrics")},
        }

    def copy(self, name: str) -> None:
        """Copy the uninterrupted run to another name."""
        shutil.rmtree(self.run(name), ignore_errors=True)
        shutil.copytree(self.run("whole"), self.run(name), symlinks=True)

    def refused(self, name: str, *flags: str) -> Run:
        """Check that resuming fails with one error message and changes no file."""
        before = self.snapshot(name)
        run = self.fit(name, "--resume", *flags, status=2)
        errors = [line for line in run.output.splitlines() if "error" in line]
        assert len(errors) == 1, run.output
        assert errors[0].startswith("lit_probsft: error: --resume: expected "), run.output
        assert "Traceback" not in run.output
        assert self.snapshot(name) == before
        return run


@pytest.fixture(scope="module")
def scenes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """A scene for each setup, made on first use."""
    made: dict[str, Whole] = {}

    def scene(setup: str) -> Whole:
        if setup not in made:
            made[setup] = Whole(server, tmp_path_factory.mktemp("scene"), **SETUPS[setup])
        return made[setup]

    return scene


# --- the same number of processes


@pytest.mark.parametrize("setup", named(SETUPS))
def test_a_killed_run_resumes_bit_for_bit(scenes: Callable[[str], Whole], setup: str) -> None:
    """The run dies while it writes the checkpoint after the one that it will resume from."""
    scene, done, flags = scenes(setup), 0, ["--overwrite"]
    every = WINDOWS if "epochs" in setup else 1
    for restart in RESTARTS.get(setup, END_AND_MIDDLE):
        scene.fit("run", *flags, status=-9, die_at=(WRITES, (restart - done) // every + 1))
        assert steps(scene.checkpoints("run"))[-1][0] == restart
        done, flags = restart, ["--resume"]
    run = scene.fit("run", "--resume")
    assert "damaged" not in run.output
    scene.assert_end("run", "whole")
    for rank in range(scene.ranks):
        diary = scene.diary("run", rank)
        assert documents(diary) == documents(scene.diary("whole", rank))
        assert [found for _, found in restarts(diary)] == RESTARTS.get(setup, END_AND_MIDDLE)
        assert len(documents(diary)) == 2 * WINDOWS * (4 if "epochs" in setup else 2)


FURTHER = {
    **dict.fromkeys(("one", "ddp", "fsdp2", "zero3"), ("--trainer.max_epochs=1", "--trainer.max_steps=4")),
    "one, not validated": ("--trainer.max_steps=4", "--trainer.max_steps=5"),
}
"""Up to which step the first two legs train: to and past the end of an epoch, or to two steps within one."""


def without_validation_counts(value: Any) -> Any:
    """The content without the counts of validation batches."""
    if not isinstance(value, dict):
        return value
    return {key: without_validation_counts(v) for key, v in value.items() if "val_loop" not in str(key)}


@pytest.mark.parametrize(
    ("setup", "every"),
    [
        *(pytest.param(setup, None, marks=[DEEPSPEED] * setup.startswith("zero")) for setup in FURTHER),
        *((setup, 1) for setup in FURTHER if setup.startswith("one")),
    ],
)
def test_a_completed_run_trained_further_equals_one_run(
    server: Server, tmp_path: Path, setup: str, every: int | None
) -> None:
    """Except that each leg ends with a validation. No row of metrics.csv is missing."""
    changes = {"checkpoints__save_every": every, "checkpoints__keep_last": 1}
    scene = Whole(server, tmp_path, **SETUPS[setup], **changes, model__schedule={"decay": "constant", "warmup": 2.0})
    scene.fit("run", FURTHER[setup][0])
    scene.fit("run", FURTHER[setup][1], "--resume")
    scene.fit("run", "--resume")
    starts = [found for _, found in restarts(scene.diary("run"))]
    assert starts == ([4, 5] if "not validated" in setup else [3, 4])
    ours, expected = without_validation_counts(scene.end("run")), without_validation_counts(scene.end("whole"))
    added = [row for row in ours["metrics"] if row not in expected["metrics"]]
    assert {int(row["step"]) for row in added} <= {start - 1 for start in starts}
    assert all("val/nll" in row and "train/loss" not in row for row in added)
    ours["metrics"] = [row for row in ours["metrics"] if row not in added]
    assert not difference(ours, expected)
    for rank in range(scene.ranks):
        assert documents(scene.diary("run", rank)) == documents(scene.diary("whole", rank))


# --- another number of processes, or other micro-batches


def layout(batch_size: int, accumulate: int, *, devices: int = 1, strategy: str = "auto") -> list[str]:
    """Flags that divide eight documents per step into micro-batches and over devices."""
    assert batch_size * accumulate * devices == 8
    given = {
        "data.batch_size": batch_size,
        "trainer.accumulate_grad_batches": accumulate,
        "trainer.devices": devices,
        "trainer.strategy": strategy,
    }
    return [word for flag, value in given.items() for word in (f"--{flag}", str(value))]


LEGS: dict[str, list[list[str]]] = {
    "other micro-batches": [layout(8, 1), layout(1, 8), layout(4, 2)],
    "one, ddp, one": [layout(8, 1), layout(1, 4, devices=2, strategy="ddp"), layout(4, 2)],
    "ddp, fsdp2": [layout(4, 1, devices=2, strategy="ddp"), layout(2, 2, devices=2, strategy="fsdp2")],
    "one, fsdp2": [layout(4, 2), layout(2, 2, devices=2, strategy="fsdp2")],
    "fsdp2, fsdp2 on one, fsdp2": [
        layout(4, 1, devices=2, strategy="fsdp2"),
        layout(8, 1, strategy="fsdp2"),
        layout(2, 2, devices=2, strategy="fsdp2"),
    ],
}
"""The layouts in which a run continues; the last has two micro-batches per step, like the uninterrupted run."""


@pytest.fixture(scope="module")
def plain(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Without dropout, whose masks depend on the layout. With this eps, Adam does not amplify tiny gradients."""
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2, "eps": 1e-6}}
    model = {"class_path": "RandomCausalLM", "init_args": {"config": tiny.LLAMA}}
    return Whole(server, tmp_path_factory.mktemp("plain"), model__model=model, model__optimizer=adam)


def per_step(scene: Scene, name: str) -> dict[int, list[int]]:
    """The documents of each step over all ranks."""
    found = defaultdict(list)
    for path in scene.folder.glob(f"runs/{name}.*.diary"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "step" in entry:
                found[entry["step"]] += entry["documents"]
    return {step: sorted(documents) for step, documents in sorted(found.items())}


def logged(scene: Scene, name: str) -> dict[str, dict[str, float]]:
    """Metrics of training by step."""
    with (scene.run(name) / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    wanted = ("lr", "train/nll", "train/mean_p", "train/accuracy", "train/grad_norm")
    return {row["step"]: {key: float(row[key]) for key in wanted} for row in rows}


@pytest.mark.parametrize("name", LEGS)
def test_in_another_layout_a_run_resumes_with_the_same_documents_to_the_same_weights(plain: Whole, name: str) -> None:
    stops = [2, WINDOWS] if len(LEGS[name]) == 3 else [4]  # within an epoch, and at its end
    run = name.replace(", ", "-").replace(" ", "-")
    for index, (flags, stop) in enumerate(zip(LEGS[name], stops, strict=False)):
        stop_flags = ["--trainer.callbacks+=tests.parallel.callbacks.Stops", f"--trainer.callbacks.step={stop}"]
        plain.fit(run, *flags, *stop_flags, *["--resume"] * (index > 0), status=STOPPED)
    plain.fit(run, *LEGS[name][-1], "--resume")

    whole = per_step(plain, "whole")
    assert [len(documents) for documents in whole.values()] == [8] * 2 * WINDOWS
    assert per_step(plain, run) == whole
    ours, expected = plain.end(run), plain.end("whole")
    torch.testing.assert_close(ours["exported"], expected["exported"], rtol=0, atol=1e-5)
    assert ours["record"]["counts"] == expected["record"]["counts"]
    assert ours["record"]["metrics"] == pytest.approx(expected["record"]["metrics"], rel=1e-5)
    last = f"step-{2 * WINDOWS:08d}.ckpt"
    for part in ("loops", "global_step", "epoch", "lr_schedulers"):
        assert not difference(ours["checkpoints"][last][part], expected["checkpoints"][last][part], part)
    rows, expected_rows = logged(plain, run), logged(plain, "whole")
    assert rows.keys() == expected_rows.keys()
    for step, row in rows.items():
        assert row == pytest.approx(expected_rows[step], rel=1e-4), step


def test_the_weights_change_in_training_and_depend_on_the_order_of_rows(plain: Whole) -> None:
    """Otherwise the comparisons above would prove nothing."""
    start = tiny.model()
    whole = plain.end("whole")["exported"]
    moved = [float((whole[name] - value).abs().max()) for name, value in start.state_dict().items()]
    assert min(moved) > 1e-3
    plain.fit("other order", "--data.seed", "1")
    other = plain.end("other order")["exported"]
    assert per_step(plain, "other order") != per_step(plain, "whole")
    assert max(float((whole[name] - value).abs().max()) for name, value in other.items()) > 1e-3


# --- what cannot be resumed


ON_ONE = ("--trainer.devices", "1", "--data.batch_size", "4")
AS_FILE = ("--trainer.strategy", "auto", *ON_ONE)


@pytest.mark.parametrize(
    ("setup", "flags", "words"),
    [
        pytest.param("zero2", ON_ONE, ["2 processes, which wrote", "to 1;"], marks=DEEPSPEED),
        pytest.param("zero3", ON_ONE, ["2 processes, which wrote", "to 1;"], marks=DEEPSPEED),
        pytest.param("zero2", ("--trainer.strategy", "fsdp2"), ["a checkpoint that fsdp2 wrote"], marks=DEEPSPEED),
        pytest.param(
            "ddp", ("--trainer.strategy", "deepspeed_stage_2"), ["a checkpoint that deepspeed wrote"], marks=DEEPSPEED
        ),
        ("fsdp2", AS_FILE, ["a single file", "a folder that fsdp2 wrote"]),
        pytest.param("zero3", AS_FILE, ["a single file", "a folder that deepspeed wrote"], marks=DEEPSPEED),
    ],
)
def test_a_checkpoint_that_the_strategy_cannot_read_is_refused(
    scenes: Callable[[str], Whole], setup: str, flags: tuple[str, ...], words: list[str]
) -> None:
    scene = scenes(setup)
    scene.copy("other")
    run = scene.refused("other", *flags)
    assert all(word in run.output for word in words), run.output


WINDOW = "the plan's window_size as in the checkpoint, 8, got "


@pytest.mark.parametrize("setup", named({name: SETUPS[name] for name in ("one", "ddp", "fsdp2", "zero2", "zero3")}))
def test_another_number_of_documents_per_step_is_refused(scenes: Callable[[str], Whole], setup: str) -> None:
    scene = scenes(setup)
    scene.copy("other")
    assert f"{WINDOW}4;" in scene.refused("other", "--trainer.accumulate_grad_batches", "1").output
    if setup in ("ddp", "fsdp2"):
        assert f"{WINDOW}4;" in scene.refused("other", "--trainer.devices", "1").output


@pytest.mark.parametrize(
    ("setup", "change"),
    [
        ("one", "a word"),
        ("one", "the order"),
        ("one", "a row less"),
        ("fsdp2", "a word"),
        pytest.param("zero2", "a word", marks=DEEPSPEED),
    ],
)
def test_changed_data_is_refused(scenes: Callable[[str], Whole], setup: str, change: str) -> None:
    scene = scenes(setup)
    scene.copy("other")
    path = scene.folder / "train.jsonl"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    shuffled = random.Random(0).sample(lines, len(lines))
    changed = {"a word": [lines[0].replace("=", "?"), *lines[1:]], "the order": shuffled, "a row less": lines[1:]}
    path.write_text("".join(changed[change]))
    try:
        assert path.read_text() != text
        assert "the data's fingerprint as in the checkpoint" in scene.refused("other").output
    finally:
        path.write_text(text)
