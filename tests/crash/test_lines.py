"""No command line and no file ends in a traceback, or goes on forever."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from lit_probsft.run.folder import RunFolder
from tests.cli import mistake_files
from tests.crash import wild_files
from tests.crash.lines import drawn, write_scene
from tests.crash.server import Run, Server

pytestmark = pytest.mark.slow

SEEDS = range(int(os.environ.get("DRAWS", "500")))
"""Each draws a command line, and a file."""


@pytest.fixture(scope="module")
def trained(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs/ folder with the completed run `done`."""
    folder = tmp_path_factory.mktemp("trained")
    mistake_files.write_files(folder, None, {})
    run = server.run("fit", "--config", "c.yaml", "--name", "done", "--trainer.max_steps", "2", cwd=folder)
    assert run.status == 0, run.output
    return folder / "runs"


def problem(run: Run, folder: Path) -> str:
    """What is wrong with how a command line ends; empty if nothing is."""
    status = run.poll(180)
    if status is None:
        run.kill()
        return "goes on after 180 s"
    left = [path.name for path in (folder / "runs").glob("*") if path.name != "done" and RunFolder(path).in_use]
    if status not in (0, 2) or "Traceback" in run.output:
        return f"ends with status {status}:\n{run.output[-1500:]}"
    if status == 2 and run.output.count("lit_probsft: error:") != 1:
        return f"has no message, or several:\n{run.output[-1500:]}"
    return f"is refused, and leaves runs/{left[0]}" if status == 2 and left else ""


def problems(server: Server, seeds: Iterable[int], folder: Path, prepare: Callable[[int, Path], list[str]]) -> str:
    """What is wrong with the command lines that `prepare` draws; two run at a time."""
    found, running = [], deque[tuple[int, Path, list[str], Run]]()
    for seed in [*seeds, None, None]:
        if len(running) == 2 or (seed is None and running):
            before, scene, words, run = running.popleft()
            if wrong := problem(run, scene):
                found.append(f"seed {before}: {words} {wrong}")
            shutil.rmtree(scene)
        if seed is not None:
            (scene := folder / str(seed)).mkdir()
            words = prepare(seed, scene)
            running.append((seed, scene, words, server.start(*words, cwd=scene, limits=True)))
    return "\n\n".join(found)


def test_no_command_line_ends_in_a_traceback(server: Server, trained: Path, tmp_path: Path) -> None:
    lines = drawn(SEEDS)

    def prepare(seed: int, folder: Path) -> list[str]:
        write_scene(folder, trained)
        return lines[seed]

    found = problems(server, SEEDS, tmp_path, prepare)
    assert not found, found


def test_no_file_ends_in_a_traceback(server: Server, tmp_path: Path) -> None:
    def prepare(seed: int, folder: Path) -> list[str]:
        mistake_files.write_files(folder, None, {})
        file = wild_files.draw(seed, folder)
        (folder / file.name).write_bytes(file.content)
        return file.words

    found = problems(server, SEEDS, tmp_path, prepare)
    assert not found, found
