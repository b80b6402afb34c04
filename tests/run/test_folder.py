"""The run folder: links, locks, removal during the run, and damaged files of a run that resumes."""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError
from lit_probsft.run.changed_flags import WITHOUT_EFFECT, changed_flags
from lit_probsft.run.folder import RunFolder
from lit_probsft.run.metrics_csv import MetricsCSV
from lit_probsft.run.record import RunRecord
from lit_probsft.storage.folder_lock import unlock_folders
from lit_probsft.training.checkpoints import Checkpoints, where_to_continue
from lit_probsft.training.module import ProbSFTModule
from tests import tiny
from tests.cli import mistake_files

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _unlocked() -> Any:
    yield
    unlock_folders()


@pytest.mark.parametrize("name", ["run.json", "checkpoints", "hf", ".lock", "checkpoints/step-1.ckpt", "hf-steps/a"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_a_run_folder_is_refused(tmp_path: Path, name: str, dangling: bool) -> None:
    foreign, link = tmp_path / "foreign", tmp_path / "run" / name
    if not dangling:
        foreign.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(foreign)
    with pytest.raises(UserError, match=f"^RUN: expected a run folder without links, .*{name} is a link to {foreign}"):
        RunFolder(tmp_path / "run", "RUN")


def test_the_run_folder_itself_and_the_names_of_checkpoints_may_be_links(tmp_path: Path) -> None:
    checkpoints = tmp_path / "disk" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.ckpt").symlink_to("step-1.ckpt")
    (tmp_path / "run").symlink_to("disk")
    RunFolder(tmp_path / "run").claim(resume=False, overwrite=True)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == [".lock"]


def test_a_folder_that_another_process_has_locked_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    script = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-S", "-c", script, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for action in (RunFolder(tmp_path).lock_existing, lambda: RunFolder(tmp_path).claim(resume=False)):
            with pytest.raises(UserError, match="--name: another process is training"):
                action()
        other.communicate("\n")
    RunFolder(tmp_path).claim(resume=False)


def test_a_run_that_finished_after_the_check_is_not_replaced(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.check(resume=False, overwrite=False)
    run.path.mkdir()
    run.record.write_text("{}")
    with pytest.raises(UserError, match="--name: the run folder .* exists"):
        run.claim(resume=False)
    assert run.record.exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_metrics_are_not_written_to_a_folder_that_was_removed(tmp_path: Path, replaced: bool) -> None:
    run = RunFolder(tmp_path / "run")
    run.claim(resume=False)
    logger = MetricsCSV(run)
    logger.release(0)
    shutil.rmtree(run.path)
    if replaced:
        run.path.mkdir()
        run.lock_file.touch()
    logger.log_metrics({"a": 1.0}, 0)
    with pytest.raises(UserError, match="--name: the run folder .* was removed or replaced during the run"):
        logger.save()
    assert not run.metrics.exists()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"a,step\r\n",
        b"a,step\r\n1,0\r\n",
        b'a,step\r\n1,0\r\nx,1\r\n"2,1\r\n3,1\r\n',
        b"\x00,s\xff\r\n1,2\r\n",
        b"a,b\r\n",
    ],
)
def test_sound_rows_of_a_damaged_table_are_kept_and_the_rest_is_set_aside(tmp_path: Path, text: bytes) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_bytes(text)
    logger = MetricsCSV(run)
    logger.release(2)
    sound = [row for row in ("1,0", "3,1") if row.encode() in text]
    kept = run.metrics.read_text().splitlines()[1:] if run.metrics.exists() else []
    assert kept == sound
    damaged = tmp_path / "metrics-damaged.csv"
    assert damaged.exists() == (b"x,1" in text or (b"step" not in text and text != b""))
    assert not damaged.exists() or damaged.read_bytes() == text


# --- whole runs


class Stop(Callback):
    """Ends the process's run with an error, or removes the run folder."""

    def __init__(self, step: int, remove: bool = False) -> None:
        self.step, self.remove = step, remove

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            if not self.remove:
                raise MemoryError("planned")
            shutil.rmtree(trainer.default_root_dir)


def fit(folder: Path, *flags: str) -> Any:
    return main(["fit", "--config", str(folder / "c.yaml"), "--runs_dir", str(folder / "runs"), *flags])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    mistake_files.write_files(tmp_path, None, {})
    return tmp_path


def stop_flags(step: int, remove: bool = False) -> list[str]:
    name = f"{Stop.__module__}.Stop"
    return [
        "--trainer.callbacks",
        name,
        "--trainer.callbacks.step",
        str(step),
        "--trainer.callbacks.remove",
        str(remove),
    ]


def test_an_error_in_the_first_step_leaves_no_folder(folder: Path) -> None:
    with pytest.raises(MemoryError):
        fit(folder, *stop_flags(0))
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_a_folder_that_is_removed_during_the_run_ends_it_and_is_not_made_again(folder: Path) -> None:
    with pytest.raises(UserError, match="--name: the run folder .* was removed or replaced during the run"):
        fit(folder, *stop_flags(2, remove=True))
    assert not (folder / "runs" / "c").exists()


# --- damaged files of a run that resumes


DAMAGES = 200
"""Flips, truncations and the like of the slow tests; each file gets a third of them."""


def damage(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    kind = rng.randrange(8)
    if kind == 0:
        del content[rng.randrange(len(content)) :]
    elif kind == 1:
        path.unlink()
        path.mkdir()
        return
    elif kind == 2:
        content[:] = b"[" * 100_000
    elif kind == 3:
        content[:] = rng.randbytes(100)
    elif kind in (4, 5):  # another digit, in a file that stays valid
        content[rng.choice([place for place, byte in enumerate(content) if chr(byte).isdecimal()])] ^= 1
    else:
        for _ in range(1 + 2 * (kind == 7)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def train(folder: Path, name: str, *callbacks: Callback, resume: bool = False) -> None:
    """As `fit` does, once it has read the configuration."""
    run = RunFolder(folder / "runs" / name)
    L.seed_everything(0, verbose=False)
    trainer = tiny.trainer(
        max_epochs=2,
        log_every_n_steps=1,
        logger=MetricsCSV(run),
        enable_checkpointing=True,
        callbacks=[
            *callbacks,
            RunRecord(run, resume=resume, config="", context={"seed": 0}),
            Checkpoints(run.checkpoints),
        ],
    )
    module = ProbSFTModule(tiny.model(num_hidden_layers=1), optimizer=tiny.adamw)
    data = tiny.data(folder / "train.jsonl", validation=tiny.rows(folder / "validation.jsonl"))
    trainer.fit(module, datamodule=data, ckpt_path=where_to_continue(run.checkpoints) if resume else None)


def damaged_copy(folder: Path, name: str, rng: random.Random) -> Path:
    """A copy of the run `part` in which one file is damaged."""
    unlock_folders()
    run = folder / "runs" / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "runs" / "part", run, symlinks=True)
    damage(run / name, rng)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.json", "metrics.csv"])
def test_damage_to_a_record_changes_no_weights_and_makes_up_no_rows(folder: Path, name: str) -> None:
    train(folder, "whole")
    with pytest.raises(MemoryError):
        train(folder, "part", Stop(4))
    whole, expected = weights(folder / "runs" / "whole"), rows_of(folder / "runs" / "whole")
    record = json.loads((folder / "runs" / "whole" / "run.json").read_text())
    rng, reported = random.Random(0), 0
    for number in range(DAMAGES // 3):
        run = damaged_copy(folder, name, rng)
        damaged = None if (run / name).is_dir() else (run / name).read_bytes()
        try:
            train(folder, "run", resume=True)
        except UserError:
            assert (damaged, name) == (None, "run.json"), number
            continue
        assert same(weights(run), whole), number
        found = json.loads((run / "run.json").read_text())
        assert (found["status"], found["counts"]) == ("completed", record["counts"])
        rows = rows_of(run)
        assert [row for row in expected if row in rows] == rows, (number, damaged)
        assert [row for row in expected if int(row["step"]) >= 3 and row not in rows] == []
        reported += (run / "metrics-damaged.csv").exists()
        if rows != expected:
            assert (run / "metrics-damaged.csv").exists(), (number, damaged)
    assert reported > DAMAGES / 6 if name == "metrics.csv" else reported == 0


@pytest.mark.slow
def test_a_damaged_configuration_is_refused_or_its_changes_are_reported(folder: Path) -> None:
    flags = ["--trainer.max_epochs", "2", "--checkpoints.export", "none"]
    fit(folder, "--name", "whole", *flags)
    with pytest.raises(MemoryError):
        fit(folder, "--name", "part", *flags, *stop_flags(4))
    whole, before = weights(folder / "runs" / "whole"), (folder / "runs" / "part" / "config.yaml").read_text()
    rng, outcomes = random.Random(0), dict.fromkeys(("refused", "changed", "same"), 0)
    for number in range(DAMAGES // 3):
        run = damaged_copy(folder, "config.yaml", rng)
        given = ["--runs_dir", str(folder / "runs"), "--name", "run", "--data.num_workers", "0", "--resume", *flags]
        try:
            main(["fit", "--config", str(run / "config.yaml"), *given, "--trainer.callbacks", "null"])
        except UserError:
            outcomes["refused"] += 1
            continue
        changed = changed_flags(before, (run / "config.yaml").read_text())
        unchanged = all(flag.startswith("trainer.callbacks") or flag in WITHOUT_EFFECT for flag in changed)
        assert same(weights(run), whole) or not unchanged, number
        assert json.loads((run / "run.json").read_text())["status"] == "completed"
        outcomes["same" if unchanged else "changed"] += 1
        assert not (run / "metrics-damaged.csv").exists()
    assert min(outcomes.values()) >= 5, outcomes
