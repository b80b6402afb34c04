"""A signal to any rank ends the run with a checkpoint; all ranks end together, and one of them says why."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.parallel.stopping import INTERRUPTED, STOPPED
from lit_probsft.storage.checkpoint_files import damage, steps
from tests.crash.scene import Scene, documents, restarts
from tests.crash.server import Run, Server

pytestmark = pytest.mark.slow

PATIENCE = 60
"""Seconds after which ranks that have not ended count as hanging."""
STRATEGIES = ("ddp", "fsdp2")
CALLBACKS = "tests.crash.callbacks"


def two(server: Server, folder: Path, strategy: str, **options: Any) -> Scene:
    settings = {"pause": 0.03, "trainer__max_epochs": 8, "trainer__strategy": strategy, "trainer__devices": 2}
    return Scene(server, folder, **{**settings, **options})


def assert_stopped(scene: Scene, name: str, run: Run, number: int, ranks: int = 1) -> None:
    """Check that the run saved the last step and said so once, and that no rank began another micro-batch."""
    messages = [line for line in run.output.splitlines() if "stopped by" in line]
    assert len(messages) == 1, run.output[-3000:]
    assert signal.Signals(number).name in messages[0]
    assert messages[0].endswith(f"; to resume: python -m lit_probsft fit --config runs/{name}/config.yaml --resume")
    assert "Traceback" not in run.output, run.output[-3000:]
    step, newest = steps(scene.checkpoints(name))[-1]
    assert f"after optimizer step {step}:" in messages[0]
    assert newest.name in messages[0]
    assert damage(newest) is None
    for rank in range(ranks):
        assert scene.diary(name, rank)[-1] | {"documents": None} == {"step": step - 1, "part": 1, "documents": None}
    assert json.loads((scene.run(name) / "run.json").read_text())["status"] == "stopped"


def assert_nothing_lost(scene: Scene, name: str, ranks: int) -> None:
    scene.assert_end(name, "whole")
    for rank in range(ranks):
        assert documents(scene.diary(name, rank)) == documents(scene.diary("whole", rank))
        assert all(done + 1 == found for done, found in restarts(scene.diary(name, rank)))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_stopped_by_a_signal_resumes_bit_for_bit(server: Server, tmp_path: Path, asynchronous: bool) -> None:
    scene = Scene(server, tmp_path, pause=0.03, trainer__max_epochs=5, checkpoints__asynchronous=asynchronous)
    scene.fit("whole")
    for step, number in ((3, signal.SIGTERM), (6, signal.SIGINT), (9, signal.SIGUSR1)):
        run = scene.start("run", *["--resume"] * (step > 3))
        scene.wait_until_trained(run, "run", step)
        run.signal(number, 0)
        assert run.wait(PATIENCE) == (INTERRUPTED if number == signal.SIGINT else STOPPED), run.output
        assert_stopped(scene, "run", run, number)
    scene.fit("run", "--resume")
    assert_nothing_lost(scene, "run", 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_signal_to_any_rank_stops_both_processes(server: Server, tmp_path: Path, strategy: str) -> None:
    scene = two(server, tmp_path, strategy)
    scene.fit("whole")
    signals = ((2, 0, signal.SIGTERM), (6, 1, signal.SIGUSR1), (10, None, signal.SIGINT))
    for step, rank, number in signals:
        run = scene.start("run", *["--resume"] * (step > 2))
        scene.wait_until_trained(run, "run", step)
        run.signal(number, rank)
        assert run.wait(PATIENCE) == (INTERRUPTED if number == signal.SIGINT else STOPPED), run.output
        assert run.gone(), run.processes()
        assert_stopped(scene, "run", run, number, ranks=2)
    scene.fit("run", "--resume")
    assert_nothing_lost(scene, "run", 2)


@pytest.mark.parametrize("times", [1, 2])
def test_a_second_interrupt_does_not_wait_for_the_step(server: Server, tmp_path: Path, times: int) -> None:
    """The first interrupt waits for the end of a slow step and saves a checkpoint."""
    scene = Scene(server, tmp_path, pause=3, trainer__max_epochs=5)
    run = scene.start("run")
    scene.wait_until_trained(run, "run", 1)
    for _ in range(times):
        time.sleep(0.5)
        run.signal(signal.SIGINT, 0)
    assert run.wait(PATIENCE) == INTERRUPTED, run.output
    assert "Ctrl-C again to stop at once" in run.output
    assert "Traceback" not in run.output
    assert bool(steps(scene.checkpoints("run"))) == (times == 1)


def test_a_signal_to_one_worker_of_torchrun_stops_the_run(server: Server, tmp_path: Path) -> None:
    scene = two(server, tmp_path, "fsdp2")
    scene.fit("whole")
    run = scene.shell("run", torchrun=True)
    scene.wait_until_trained(run, "run", 3)
    run.signal(signal.SIGTERM, 1)
    assert run.wait(PATIENCE) != 0
    assert run.gone(), run.processes()
    assert f"exitcode  : {STOPPED}" in run.output
    step, newest = steps(scene.checkpoints("run"))[-1]
    assert run.output.count(f"stopped by SIGTERM after optimizer step {step}:") == 1, run.output
    assert damage(newest) is None
    scene.fit("run", "--resume")
    assert_nothing_lost(scene, "run", 2)


@pytest.mark.parametrize(
    ("strategy", "rank"), [("auto", 0), *((strategy, rank) for strategy in STRATEGIES for rank in (0, 1, None))]
)
def test_a_signal_before_training_leaves_no_run(
    server: Server, tmp_path: Path, strategy: str, rank: int | None
) -> None:
    """The signal comes during the first validation."""
    callback = {"class_path": f"{CALLBACKS}.SignalsBeforeTraining", "init_args": {"rank": rank}}
    changes = {"trainer__callbacks": [callback], "trainer__max_epochs": 1}
    several = {} if strategy == "auto" else {"trainer__strategy": strategy, "trainer__devices": 2}
    scene = Scene(server, tmp_path, **changes, **several)
    run = scene.start("run")
    assert run.wait(PATIENCE) == STOPPED, run.output
    assert run.gone(), run.processes()
    assert run.output.count("SIGTERM before training began") == 1, run.output
    assert "Traceback" not in run.output
    assert not scene.run("run").exists()


def test_a_signal_before_anything_is_built_leaves_no_run(server: Server, tmp_path: Path) -> None:
    callback = {"class_path": f"{CALLBACKS}.SignalsBeforeTraining", "init_args": {"early": True}}
    scene = Scene(server, tmp_path, trainer__callbacks=[callback])
    run = scene.start("run")
    assert run.wait(PATIENCE) in (STOPPED, -signal.SIGTERM), run.output  # a shell reports 143 for both
    assert "Traceback" not in run.output
    assert not scene.run("run").exists()


def test_a_signal_to_one_rank_before_they_are_connected_ends_the_run(server: Server, tmp_path: Path) -> None:
    callback = {"class_path": f"{CALLBACKS}.SignalsBeforeTraining", "init_args": {"rank": 1, "early": True}}
    scene = two(server, tmp_path, "ddp", trainer__callbacks=[callback])
    run = scene.start("run")
    assert run.wait(PATIENCE) == STOPPED, run.output
    assert run.gone(), run.processes()
    assert run.output.count("lit_probsft: ") == run.output.count("stopped by a signal to another rank") == 1, run.output
    assert "Traceback" not in run.output
    assert not scene.run("run").exists()


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_error_on_one_rank_ends_all_and_is_reported_once(
    server: Server, tmp_path: Path, strategy: str, rank: int, user: bool
) -> None:
    callback = {"class_path": f"{CALLBACKS}.Fails", "init_args": {"step": 4, "rank": rank, "user": user}}
    scene = two(server, tmp_path, strategy, trainer__callbacks=[callback], trainer__max_epochs=3)
    run = scene.start("run")
    assert run.wait(PATIENCE) == (2 if user else 1), run.output
    assert run.gone(), run.processes()
    message = f"{'lit_probsft: error' if user else 'RuntimeError'}: the power goes out"
    assert run.output.splitlines().count(message) == 1, run.output
    assert run.output.count("Traceback") == (0 if user else 1), run.output
    assert "died without an error message" not in run.output
    scene.assert_nothing_half_written("run")
    assert steps(scene.checkpoints("run"))[-1][0] == 2


@pytest.mark.parametrize(("strategy", "rank"), [("ddp", 1), ("fsdp2", 0)])
def test_a_killed_rank_ends_the_others(server: Server, tmp_path: Path, strategy: str, rank: int) -> None:
    """If rank 1 is killed, rank 0 reports it; if rank 0 is killed, no rank is left to report it."""
    scene = two(server, tmp_path, strategy)
    scene.fit("whole")
    run = scene.start("run")
    scene.wait_until_trained(run, "run", 3)
    run.signal(signal.SIGKILL, rank)
    assert run.wait(PATIENCE) == (-9 if rank == 0 else 1), run.output
    assert run.gone(PATIENCE), run.processes()
    if rank == 1:
        assert run.output.count("another rank died without an error message") == 1, run.output
        assert "Traceback" not in run.output, run.output
    scene.assert_nothing_half_written("run")
    scene.fit("run", "--resume")
    scene.assert_end("run", "whole")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_hanging_rank_does_not_outlive_a_killed_one(server: Server, tmp_path: Path, rank: int) -> None:
    """The hanging rank is in no collective that would fail, so it has to be killed."""
    callbacks = [
        {"class_path": f"{CALLBACKS}.Diary"},
        {"class_path": f"{CALLBACKS}.Hangs", "init_args": {"step": 3, "rank": 1 - rank}},
    ]
    scene = two(server, tmp_path, "ddp", trainer__callbacks=callbacks)
    run = scene.start("run", patience=2)
    scene.wait_until_trained(run, "run", 2)
    time.sleep(0.5)
    run.signal(signal.SIGKILL, rank)
    assert run.wait(PATIENCE) == (-9 if rank == 0 else 1), run.output
    assert run.gone(PATIENCE), run.processes()
    assert ("rank 1 ended with status -9" in run.output) == (rank == 1), run.output
