"""No command line and no file ends in a traceback, or goes on forever."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli import mistake_files
from tests.crash import wild_files
from tests.crash.lines import Lines, write_scene
from tests.crash.server import Server

pytestmark = pytest.mark.slow

LINES, FILES = range(500), range(500)
"""The seeds."""


@pytest.fixture(scope="module")
def trained(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs/ folder with the completed run `done`."""
    folder = tmp_path_factory.mktemp("trained")
    mistake_files.write_files(folder, None, {})
    run = server.run("fit", "--config", "c.yaml", "--name", "done", "--trainer.max_steps", "2", cwd=folder)
    assert run.status == 0, run.output
    return folder / "runs"


def problems(server: Server, words: list[str], folder: Path) -> str:
    """What is wrong with how a command line ends; empty if nothing is."""
    run = server.start(*words, cwd=folder, limits=True)
    status = run.poll(30)
    if status is None:
        run.kill()
        return "goes on after 30 s"
    left = [path.name for path in (folder / "runs").glob("*") if path.name != "done"]
    if status not in (0, 2) or "Traceback" in run.output:
        return f"ends with status {status}:\n{run.output[-1500:]}"
    if status == 2 and run.output.count("lit_probsft: error:") != 1:
        return f"has no message, or several:\n{run.output[-1500:]}"
    return f"is refused, and leaves runs/{left[0]}" if status == 2 and left else ""


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def test_no_command_line_ends_in_a_traceback(server: Server, trained: Path, tmp_path: Path) -> None:
    found = {}
    for seed in LINES:
        write_scene(fresh(tmp_path / "scene"), trained)
        words = Lines(seed).draw()
        if problem := problems(server, words, tmp_path / "scene"):
            found[seed] = f"{words} {problem}"
    assert not found, "\n\n".join(f"seed {seed}: {problem}" for seed, problem in found.items())


def test_no_file_ends_in_a_traceback(server: Server, tmp_path: Path) -> None:
    found = {}
    for seed in FILES:
        folder = fresh(tmp_path / "scene")
        mistake_files.write_files(folder, None, {})
        file = wild_files.draw(seed, folder)
        (folder / file.name).write_bytes(file.content)
        if problem := problems(server, file.words, folder):
            found[seed] = f"{file.words} with {file.content[:200]!r} {problem}"
    assert not found, "\n\n".join(f"seed {seed}: {problem}" for seed, problem in found.items())
