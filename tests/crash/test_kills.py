"""`kill -9` at any moment loses only the steps since the last checkpoint, and no row of metrics.csv."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.parallel.processes import INTERRUPTED, STOPPED
from lit_probsft.storage.checkpoint_files import steps
from tests.crash.scene import EVERY, Scene, difference, documents, exported, metrics, restarts
from tests.crash.server import Run, Server

pytestmark = pytest.mark.slow

Moment = tuple[str, int] | None
"""A point next to a system call and its occurrence, from 1; None for a random time."""

ONE_DEVICE = {"trainer__strategy": "fsdp2", "trainer__devices": 1}
TWO = {"trainer__devices": 2}


class Killer:
    """Kills runs at given moments and resumes them, then compares them with an uninterrupted run.

    Args:
        scene: starts the runs.
        seed: seed for the choice of moments.
        behind: how many checkpoints before the last due one a run may fall back to; 1 for asynchronous checkpoints.
        ranks: processes of a run.
    """

    def __init__(self, scene: Scene, seed: int, *, behind: int = 0, ranks: int = 1) -> None:
        self.scene, self.seed, self.behind, self.ranks = scene, seed, behind, ranks
        self.random = random.Random(seed)
        self.deaths: Counter[tuple[str, str]] = Counter()
        scene.fit("whole")
        self.points = scene.points()
        notes = scene.notes()
        first_save = next(index for index, note in enumerate(notes) if note.startswith("saving"))
        self.early = {note.partition(" ")[2] for note in notes[:first_save]}

    def moments(self, *words: str) -> list[Moment]:
        """Each point whose name contains one of the words, at its first, second or third occurrence.

        Points after a system call are left out: the files are the same before the next one."""
        found = [point for point in self.points if any(word in point for word in words) and "after" not in point]
        return [(point, self.random.randint(1, min(3, self.points[point]))) for point in sorted(found)]

    def kill(self, moments: list[Moment]) -> None:
        """Kill runs at all moments, in random order except that those at a run's start come first and those at its
        end last; check that each run then ends the same as the uninterrupted one."""
        left = self.random.sample(moments, len(moments))
        left.sort(key=lambda moment: 1 if moment is None else 2 * (moment[0] in self.early) or ".hf." not in moment[0])
        runs = 0
        while left:
            runs += 1
            name = f"run{runs}"
            while True:
                moment = left.pop() if left else ("never", 1)
                fresh = not self.scene.run(name).exists()
                run = self._start(name, moment)
                assert "is damaged" not in run.output, run.output[-6000:]
                if run.status == 0:
                    if moment != ("never", 1):
                        assert moment is None or not fresh, f"the run never reaches {moment}"
                        left.append(moment)  # the run had passed this moment: the next run starts with it
                    break
                assert run.status == -9, f"{moment}:\n{run.output[-6000:]}"
                self._inspect(name, moment)
            self.scene.assert_end(name, "whole")
            for rank in range(self.ranks):
                diary = self.scene.diary(name, rank)
                assert documents(diary) == documents(self.scene.diary("whole", rank))
                for done, found in restarts(diary):
                    assert EVERY * (done // EVERY - self.behind) <= found <= done + 1, (done, found)
        print(f"seed {self.seed}: {self.deaths.total()} deaths in {runs} runs: {dict(self.deaths)}")

    def _start(self, name: str, moment: Moment) -> Run:
        flags = self.scene.resume_flags(name) if self.scene.run(name).exists() else []
        if moment is not None:
            run = self.scene.start(name, *flags, die_at=moment)
            run.wait()
            return run
        run = self.scene.start(name, *flags, pause=0.002)  # slows down the writing of files
        if self.random.random() < 0.9:  # most kills come after the first file is written
            until = time.monotonic() + 60
            while not self.scene.notes() and run.poll() is None:
                assert time.monotonic() < until, run.output[-6000:]
                time.sleep(0.005)
        if run.poll(self.random.uniform(0, 1)) is None:
            run.kill()
        return run

    def _inspect(self, name: str, moment: Moment) -> None:
        notes = self.scene.notes() or ["before training"]
        self.deaths["at a random time" if moment is None else "at a point", notes[-1].partition(" ")[0]] += 1
        try:
            self.scene.assert_nothing_half_written(name)
        except Exception as error:
            raise AssertionError(f"seed {self.seed}, after a death at {moment}, {notes[-1]}: {error}") from error

    @property
    def while_saving(self) -> int:
        return sum(number for (_, what), number in self.deaths.items() if what == "saving")


INTERRUPTIONS = int(os.environ.get("INTERRUPTIONS", "3"))
"""How often each of the runs below is interrupted; 25 makes a hundred."""


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("ranks", [1, 2])
def test_kills_and_signals_lose_and_repeat_no_row(server: Server, tmp_path: Path, ranks: int, seed: int) -> None:
    """Three of five interruptions are kills, the others signals to one process or to all. A row is logged every third
    step and a checkpoint saved every second, so that most checkpoints come between two rows."""
    devices = {"trainer__strategy": "ddp", **TWO} if ranks == 2 else {}
    changes = {"trainer__max_epochs": 8, "trainer__log_every_n_steps": 3, "checkpoints__keep_last": 1, **devices}
    scene = Scene(server, tmp_path, pause=0.01, **changes, checkpoints__asynchronous=seed == 12)
    started = time.monotonic()
    scene.fit("whole")
    seconds, moments = time.monotonic() - started, random.Random(seed)
    died: Counter[str] = Counter()
    interruptions, runs = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL], 0
    while True:
        name = f"run{runs}"
        number = interruptions[died.total() % 5] if died.total() < INTERRUPTIONS else None
        run = scene.start(name, *scene.resume_flags(name))
        if number is not None and run.poll(moments.uniform(0.1, 1.1) * seconds) is None:
            if number == signal.SIGKILL:
                run.kill()
            else:
                run.signal(number, moments.choice([None, *range(len(run.ranks()))]))
        status = run.wait()
        assert run.gone(10), run.processes()
        assert "Traceback" not in run.output, run.output[-6000:]
        if status:
            assert number is not None, run.output[-6000:]
            allowed = {signal.SIGTERM: STOPPED, signal.SIGINT: INTERRUPTED}
            assert status in (-number, allowed.get(number)), (status, number, run.output[-6000:])
            died[number.name] += 1
            continue
        scene.assert_end(name, "whole")
        runs += 1
        if number is None:
            break
    rows = len(metrics(scene.run("whole") / "metrics.csv"))
    print(f"seed {seed}, {ranks} processes: {dict(died)} in {runs} runs of {rows} rows: none lost or doubled")


def test_fifty_kills_lose_only_the_steps_since_the_last_checkpoint(server: Server, tmp_path: Path) -> None:
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=12), seed=1)
    killer.kill([*killer.moments(""), *[None] * 24])
    assert killer.deaths.total() >= 50
    assert killer.while_saving >= 25


def test_kills_with_asynchronous_checkpoints_lose_at_most_one_checkpoint_more(server: Server, tmp_path: Path) -> None:
    """The checkpoint that was being written may be lost."""
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=12, checkpoints__asynchronous=True), seed=2, behind=1)
    killer.kill([*killer.moments("checkpoints"), *[None] * 6])
    assert killer.deaths.total() >= 15
    assert killer.while_saving >= 8


def test_a_killed_run_with_sharded_checkpoints_resumes_bit_for_bit(server: Server, tmp_path: Path) -> None:
    """A sharded checkpoint is many files, written and deleted one by one; the run dies between them."""
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=12, **ONE_DEVICE), seed=3)
    moments = killer.moments("step-N.ckpt")
    killer.kill([moment for moment in moments if moment and "fsync" not in moment[0]])
    assert killer.while_saving == killer.deaths.total() >= 12


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_killed_run_of_two_processes_resumes_bit_for_bit(server: Server, tmp_path: Path, strategy: str) -> None:
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=5, trainer__strategy=strategy, **TWO), seed=4, ranks=2)
    killer.kill(
        [("before replace checkpoints/.step-N.ckpt.partial", 2), killer.moments("within checkpoints")[-1], None, None]
    )
    assert killer.while_saving >= 2


def test_a_killed_run_started_in_a_shell_resumes_bit_for_bit(server: Server, tmp_path: Path) -> None:
    """Without the fork server, as a user starts a run; this also shows that the fork server changes nothing."""
    scene = Scene(server, tmp_path, pause=0.05, trainer__max_epochs=5, trainer__strategy="fsdp2", **TWO)
    scene.fit("whole")
    run = scene.shell("killed")
    scene.wait_until_trained(run, "killed", 5)
    run.kill()
    scene.assert_nothing_half_written("killed")
    assert steps(scene.checkpoints("killed"))
    scene.fit("killed", "--resume")
    scene.assert_end("killed", "whole")


def test_a_killed_export_leaves_a_complete_model_or_none(server: Server, tmp_path: Path) -> None:
    """The `export` command, to a new folder and over an older model."""
    scene = Scene(server, tmp_path, trainer__max_epochs=1)
    scene.fit("whole")
    expected = exported(scene.run("whole") / "hf")
    folder = tmp_path / "place"
    out = folder / "model"

    def export(*flags: str, **faults: Any) -> int:
        return scene.watched(folder, "export", scene.checkpoints("whole") / "last.ckpt", out, *flags, **faults).wait()

    for flags, died in (([], 8), (["--overwrite"], 16)):
        if flags:
            shutil.copytree(scene.run("whole") / "hf", out, dirs_exist_ok=True)
        assert export(*flags) == 0
        points = [point for point in scene.points() if "after" not in point]
        assert len(points) >= died
        for point in points:
            shutil.rmtree(out, ignore_errors=True)
            if flags:
                shutil.copytree(scene.run("whole") / "hf", out)
            assert export(*flags, die_at=(point, 1)) == -9, point
            assert not out.exists() or not difference(exported(out), expected), point
        assert export("--overwrite") == 0
        assert not difference(exported(out), expected)
        assert [path.name for path in folder.iterdir()] == ["model"], "left behind"


def test_a_killed_overwrite_never_leaves_half_a_model(server: Server, tmp_path: Path) -> None:
    """`fit --overwrite` dies while it removes the older model or writes its own."""
    scene = Scene(server, tmp_path, trainer__max_epochs=1)
    scene.fit("whole")
    scene.fit("again")
    scene.fit("again", "--overwrite")
    points = [point for point in scene.points() if "hf" in point and "after" not in point]
    assert len(points) >= 16
    for point in random.Random(7).sample(sorted(points), 8):
        shutil.rmtree(scene.run("again"))
        shutil.copytree(scene.run("whole"), scene.run("again"))
        scene.fit("again", "--overwrite", status=-9, die_at=(point, 1))
        scene.assert_nothing_half_written("again")
    scene.fit("again", *scene.resume_flags("again"))
    scene.assert_end("again", "whole")


def test_a_run_killed_before_its_export_exports_the_best_model_on_resume(server: Server, tmp_path: Path) -> None:
    """`export: best`; the run dies between the last checkpoint and its export."""
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=3, checkpoints__export="best"), seed=5)
    last = ("before mkdir .hf.partial", killer.points["before mkdir .hf.partial"])
    killer.kill([last])
    assert killer.while_saving == 1


def test_a_run_killed_during_an_export_exports_every_model_on_resume(server: Server, tmp_path: Path) -> None:
    """`export: every`; the run dies during the export of a checkpoint."""
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=2, checkpoints__export="every"), seed=6)
    killer.kill([("within hf-steps/.step-N.partial/config.json", 2)])
    assert killer.while_saving == 1
