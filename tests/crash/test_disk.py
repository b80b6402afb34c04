"""A full or read-only disk ends a run with one error message and leaves existing files unchanged."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.storage.checkpoint_files import damage
from tests.crash.scene import Scene, difference, exported
from tests.crash.server import Run, Server

pytestmark = pytest.mark.slow

KINDS: dict[str, dict[str, Any]] = {
    "a file": {},
    "a file in the background": {"checkpoints__asynchronous": True},
    "a folder": {"trainer__strategy": "fsdp2", "trainer__devices": 1},
    "a folder in the background": {
        "trainer__strategy": "fsdp2",
        "trainer__devices": 1,
        "checkpoints__asynchronous": True,
    },
}
ENOUGH_FOR_TEXT = 30_000
"""In bytes: more than a run's record, metrics and output, less than a checkpoint or one of its shards."""
NOT_FOR_A_MODEL = 15_000
NO_SPACE = r"File too large|No space left on device|\bfull\b"


def assert_one_message(run: Run, words: str) -> None:
    assert run.status == 2, f"status {run.status}:\n{run.output[-3000:]}"
    errors = [line for line in run.output.splitlines() if line.startswith("lit_probsft: error:")]
    assert len(errors) == 1, run.output[-3000:]
    assert re.search(words, errors[0]), errors
    assert "Traceback" not in run.output, run.output[-3000:]


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*") if path.name not in (".metadata", ".lock")]


@pytest.fixture(scope="module", params=KINDS)
def scene(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A scene with a completed run."""
    made = Scene(server, tmp_path_factory.mktemp("disk"), trainer__max_epochs=1, **KINDS[request.param])
    made.fit("whole")
    return made


@pytest.fixture
def run(scene: Scene) -> Iterator[str]:
    """A copy of the completed run."""
    shutil.copytree(scene.run("whole"), scene.run("run"), symlinks=True)
    yield "run"
    subprocess.run(["chmod", "-R", "u+w", scene.run("run")], check=True)
    shutil.rmtree(scene.run("run"))


def test_a_full_disk_during_a_checkpoint_leaves_the_previous_one_intact(scene: Scene, run: str) -> None:
    before = scene.snapshot(run)
    ended = scene.start(run, "--resume", "--trainer.max_epochs=3", file_limit=ENOUGH_FOR_TEXT)
    ended.wait()
    last = scene.checkpoints(run) / "step-00000003.ckpt"
    written = rf"checkpoint: .*step-00000004.ckpt could not be written: ({NO_SPACE})"
    assert_one_message(ended, rf"{written}; the previous checkpoint, .*{last.name}, is intact")
    assert damage(last) is None
    assert scene.snapshot(run) == before
    assert not leftovers(scene.run(run))
    scene.fit(run, "--resume", "--trainer.max_epochs=3")


def test_a_full_disk_at_the_first_checkpoint_leaves_no_partial_file(scene: Scene) -> None:
    ended = scene.start("first", file_limit=ENOUGH_FOR_TEXT)
    ended.wait()
    assert_one_message(
        ended, rf"checkpoint: .*step-00000002.ckpt could not be written: ({NO_SPACE}); there is no previous checkpoint"
    )
    assert not leftovers(scene.run("first"))
    assert not list(scene.checkpoints("first").glob("*"))
    shutil.rmtree(scene.run("first"))


def test_a_read_only_checkpoint_folder_is_one_error(scene: Scene, run: str) -> None:
    before = scene.snapshot(run)
    scene.checkpoints(run).chmod(0o555)
    ended = scene.start(run, "--resume", "--trainer.max_epochs=3", no_privileges=True)
    ended.wait()
    assert_one_message(ended, "(checkpoint|--resume|--runs_dir).*checkpoints.*(ermission|writt?e)")
    assert scene.snapshot(run) == before
    assert not leftovers(scene.run(run))


# --- the exported model


@pytest.fixture(scope="module")
def exporting(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    made = Scene(server, tmp_path_factory.mktemp("export"), trainer__max_epochs=1)
    made.fit("whole")
    return made


@pytest.mark.parametrize("older", [False, True])
def test_a_full_disk_during_an_export_keeps_the_older_model(exporting: Scene, older: bool) -> None:
    checkpoint, hf = exporting.checkpoints("whole") / "last.ckpt", exporting.run("whole") / "hf"
    place = exporting.folder / f"place-{older}"
    out = place / "model"
    if older:
        shutil.copytree(hf, out)
    ended = exporting.server.run(
        "export", checkpoint, out, "--overwrite", cwd=exporting.folder, file_limit=NOT_FOR_A_MODEL
    )
    assert_one_message(ended, f"(export|OUT): .*{out} could not be written: .*({NO_SPACE})")
    assert out.exists() == older
    assert not older or not difference(exported(out), exported(hf))
    assert [path.name for path in place.glob("*")] == ["model"] * older


def test_a_full_disk_at_the_end_of_training_leaves_no_partial_model(exporting: Scene) -> None:
    ended = exporting.start("full", "--trainer.enable_checkpointing=false", file_limit=NOT_FOR_A_MODEL)
    ended.wait()
    assert_one_message(ended, f"export: .*hf could not be written: .*({NO_SPACE})")
    assert not (exporting.run("full") / "hf").exists()
    assert not leftovers(exporting.run("full"))


def test_a_read_only_export_folder_is_one_error(exporting: Scene) -> None:
    checkpoint, place = exporting.checkpoints("whole") / "last.ckpt", exporting.folder / "closed"
    shutil.copytree(exporting.run("whole") / "hf", place / "hf")
    place.chmod(0o555)
    for out, flags in ((place / "hf", ["--overwrite"]), (place / "new", [])):
        ended = exporting.server.run("export", checkpoint, out, *flags, cwd=exporting.folder, no_privileges=True)
        assert_one_message(ended, f"(export|OUT): .*{out}.*ermission denied")
    place.chmod(0o755)
    assert [path.name for path in place.iterdir()] == ["hf"]
    assert not difference(exported(place / "hf"), exported(exporting.run("whole") / "hf"))


# --- a disk that is completely full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system with a size in KiB."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        path = tmp_path / "disk"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(path)]
        if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("needs permission to mount a file system")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(filler: Path) -> None:
    """Use up the free space of a file system."""
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.parametrize("kind", ["a file", "a folder in the background"])
def test_a_run_whose_disk_fills_up_resumes_bit_for_bit_once_there_is_space(
    server: Server, tmp_path: Path, disk: Any, kind: str
) -> None:
    """While the disk is full, no checkpoint, metric or record can be written."""
    mounted = disk(8192)
    scene = Scene(server, tmp_path, pause=0.02, trainer__max_epochs=6, **KINDS[kind])
    scene.fit("whole")
    scene.run("run").symlink_to(mounted)
    run = scene.start("run")
    scene.wait_until_trained(run, "run", 4)
    until = time.monotonic() + 60
    while run.poll(0.002) is None and time.monotonic() < until:
        fill(mounted / "filler")  # deleting old checkpoints frees space
    run.wait(0)
    assert_one_message(run, NO_SPACE)
    (mounted / "filler").unlink()
    assert not leftovers(mounted)
    scene.assert_nothing_half_written("run")
    scene.fit("run", "--resume")
    scene.assert_end("run", "whole")
