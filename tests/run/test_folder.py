"""The run folder: links, locks, removal during the run, and damaged files of a run that resumes."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError
from lit_probsft.run.folder import RunFolder, unlock_folders
from lit_probsft.run.metrics_csv import MetricsCSV
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


DAMAGES = 200
"""Flips and truncations of the slow test."""

DONE = ("run.json", "metrics.csv", "config.yaml")


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
        content[:] = os.urandom(100)
    else:
        for _ in range(kind - 3):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.slow
def test_damage_beside_intact_checkpoints_changes_no_weights_and_makes_up_no_rows(folder: Path) -> None:
    fit(folder, "--name", "whole", "--trainer.max_epochs", "2")
    with pytest.raises(MemoryError):
        fit(folder, "--name", "part", "--trainer.max_epochs", "2", *stop_flags(4))
    whole = torch.load(folder / "runs" / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    expected = (folder / "runs" / "whole" / "metrics.csv").read_text().splitlines()
    rng, ended = random.Random(0), 0
    for number in range(DAMAGES):
        run = folder / "runs" / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / "runs" / "part", run, symlinks=True)
        name = DONE[number % len(DONE)]
        damage(run / name, rng)
        flags = ["--name", "run", "--resume", "--trainer.max_epochs", "2"]
        try:
            if name == "config.yaml" and number % 2:
                main(["fit", "--config", str(run / name), *flags[2:], "--trainer.callbacks", "null"])
            else:
                fit(folder, *flags)
        except UserError:
            ended += 1
            continue
        found = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        if name != "config.yaml":
            assert all(torch.equal(found[key], value) for key, value in whole.items()), number
        assert json.loads((run / "run.json").read_text())["status"] == "completed"
        with (run / "metrics.csv").open(newline="") as file:
            steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
        assert len(steps) == len(set(steps)), number
        assert len(steps) <= len(expected)
    assert ended < DAMAGES / 2
