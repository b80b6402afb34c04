"""`kill -9` at any moment costs the steps since the last checkpoint, and nothing else."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.storage.checkpoint_files import steps
from tests.crash.scene import EVERY, Scene, difference, documents, exported, losses
from tests.crash.server import Run, Server

pytestmark = pytest.mark.slow

Moment = tuple[str, int] | None
"""A point between two system calls and at which of its kind; or None for one that the clock chooses."""

ONE_DEVICE = {"trainer__strategy": "fsdp2", "trainer__devices": 1}
TWO = {"trainer__devices": 2}


class Killer:
    """Kills runs and goes on with them, in one process or in several, until all deaths have been died.

    Args:
        scene: whose runs.
        seed: of the moments.
        behind: checkpoints by which a run may fall back beyond the last one that was due; 1 where they are written
            while training goes on.
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
        """Each point whose name has one of the words, once: the first, second or third of its kind. What is left
        after a system call is there before the next one, too."""
        found = [point for point in self.points if any(word in point for word in words) and "after" not in point]
        return [(point, self.random.randint(1, min(3, self.points[point]))) for point in sorted(found)]

    def kill(self, moments: list[Moment]) -> None:
        """Die at each, in any order, but with the start of a run first and its end last; all ends as the whole run,
        once nobody kills."""
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
                assert "is damaged" not in run.said, run.said[-6000:]
                if run.status == 0:
                    if moment != ("never", 1):
                        assert moment is None or not fresh, f"{moment} does not come"
                        left.append(moment)  # what did not come any more is the next run's first
                    break
                assert run.status == -9, f"{moment}:\n{run.said[-6000:]}"
                self._look_after(name, moment)
            self.scene.assert_end(name, "whole")
            for rank in range(self.ranks):
                diary = self.scene.diary(name, rank)
                assert documents(diary) == documents(self.scene.diary("whole", rank))
                for done, found in losses(diary):
                    assert EVERY * (done // EVERY - self.behind) <= found <= done + 1, (done, found)
        print(f"seed {self.seed}: {self.deaths.total()} deaths in {runs} runs: {dict(self.deaths)}")

    def _start(self, name: str, moment: Moment) -> Run:
        flags = self.scene.going_on(name) if self.scene.run(name).exists() else []
        if moment is not None:
            run = self.scene.start(name, *flags, die_at=moment)
            run.wait()
            return run
        run = self.scene.start(name, *flags, pause=0.002)  # slower where files are written
        if self.random.random() < 0.9:  # most die while there is something to lose
            until = time.monotonic() + 60
            while not self.scene.notes() and run.poll() is None:
                assert time.monotonic() < until, run.said[-6000:]
                time.sleep(0.005)
        if run.poll(self.random.uniform(0, 1)) is None:
            run.kill()
        return run

    def _look_after(self, name: str, moment: Moment) -> None:
        notes = self.scene.notes() or ["before training"]
        self.deaths["by the clock" if moment is None else "at a point", notes[-1].partition(" ")[0]] += 1
        try:
            self.scene.assert_nothing_half(name)
        except Exception as error:
            raise AssertionError(f"seed {self.seed}, after a death at {moment}, {notes[-1]}: {error}") from error

    @property
    def while_saving(self) -> int:
        return sum(number for (_, what), number in self.deaths.items() if what == "saving")


def test_fifty_kills_cost_nothing_but_the_steps_since_the_last_checkpoint(server: Server, tmp_path: Path) -> None:
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=12), seed=1)
    killer.kill([*killer.moments(""), *[None] * 24])
    assert killer.deaths.total() >= 50
    assert killer.while_saving >= 25


def test_kills_while_checkpoints_are_written_in_the_background(server: Server, tmp_path: Path) -> None:
    """A run may fall back one checkpoint further: the one that was being written."""
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=12, checkpoints__asynchronous=True), seed=2, behind=1)
    killer.kill([*killer.moments("checkpoints"), *[None] * 6])
    assert killer.deaths.total() >= 15
    assert killer.while_saving >= 8


def test_kills_between_all_files_of_a_folder(server: Server, tmp_path: Path) -> None:
    """A checkpoint in slices is many files, which come and go one after the other."""
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=12, **ONE_DEVICE), seed=3)
    moments = killer.moments("step-N.ckpt")
    killer.kill([moment for moment in moments if moment and "fsync" not in moment[0]])
    assert killer.while_saving == killer.deaths.total() >= 12


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_kills_of_two_processes(server: Server, tmp_path: Path, strategy: str) -> None:
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=5, trainer__strategy=strategy, **TWO), seed=4, ranks=2)
    killer.kill(
        [("before replace checkpoints/.step-N.ckpt.partial", 2), killer.moments("within checkpoints")[-1], None, None]
    )
    assert killer.while_saving >= 2


def test_two_processes_that_python_has_started(server: Server, tmp_path: Path) -> None:
    """As a user starts them, without the fork server; which also shows that it changes nothing."""
    scene = Scene(server, tmp_path, pause=0.05, trainer__max_epochs=5, trainer__strategy="fsdp2", **TWO)
    scene.fit("whole")
    run = scene.shell("killed")
    scene.wait_until_trained(run, "killed", 5)
    run.kill()
    scene.assert_nothing_half("killed")
    assert steps(scene.checkpoints("killed"))
    scene.fit("killed", "--resume")
    scene.assert_end("killed", "whole")


def test_an_export_is_whole_or_not_there(server: Server, tmp_path: Path) -> None:
    """Of the command, to a new place and in the place of an older model."""
    scene = Scene(server, tmp_path, trainer__max_epochs=1)
    scene.fit("whole")
    expected = exported(scene.run("whole") / "hf")
    place = tmp_path / "place"
    out = place / "model"

    def export(*flags: str, **faults: Any) -> int:
        return scene.watched(place, "export", scene.checkpoints("whole") / "last.ckpt", out, *flags, **faults).wait()

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
        assert [path.name for path in place.iterdir()] == ["model"], "left behind"


def test_a_run_that_replaces_another_never_leaves_half_a_model(server: Server, tmp_path: Path) -> None:
    """`fit --overwrite`, while it removes the older model or writes its own."""
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
        scene.assert_nothing_half("again")
    scene.fit("again", *scene.going_on("again"))
    scene.assert_end("again", "whole")


def test_the_best_model_is_exported_although_the_run_died_before(server: Server, tmp_path: Path) -> None:
    """With `export: best`, between the last checkpoint and its export."""
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=3, checkpoints__export="best"), seed=5)
    last = ("before mkdir .hf.partial", killer.points["before mkdir .hf.partial"])
    killer.kill([last])
    assert killer.while_saving == 1


def test_every_model_is_exported_although_the_run_died_before(server: Server, tmp_path: Path) -> None:
    """With `export: every`, between a checkpoint and its export."""
    killer = Killer(Scene(server, tmp_path, trainer__max_epochs=2, checkpoints__export="every"), seed=6)
    killer.kill([("within hf-steps/.step-N.partial/config.json", 2)])
    assert killer.while_saving == 1
