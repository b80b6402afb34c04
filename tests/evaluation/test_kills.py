"""`evaluate` killed at any moment: a later call ends with the same numbers, and no answer is there twice."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.data import ByteTokenizer
from lit_probsft.parallel.stopping import INTERRUPTED, STOPPED
from tests import tiny
from tests.crash.server import Run, Server
from tests.evaluation.scene import answers_of, outcome

pytestmark = pytest.mark.slow

ROWS, SAMPLES = 40, 4
KILLS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers at random, and questions."""
    path = tmp_path_factory.mktemp("kills")
    tiny.model(seed=7, initializer_range=0.5).save_pretrained(path / "m")
    ByteTokenizer().load(list).save_pretrained(path / "m")
    rows = [{"question": f"{number}?", "answer": chr(97 + number % 26)} for number in range(ROWS)]
    (path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(server: Server, folder: Path, name: str, *flags: str) -> Run:
    sampling = ["--n", SAMPLES, "--temperature", 1, "--max-new-tokens", 30, "--greedy"]
    words = [
        "evaluate",
        "m",
        "--tasks",
        "Exact:q.jsonl",
        "--out",
        f"results/{name}.json",
        "--device",
        "cpu",
        *sampling,
        *flags,
    ]
    return server.start(*words, cwd=folder)


def results(folder: Path, name: str) -> Any:
    return json.loads((folder / f"results/{name}.json").read_text())


@pytest.fixture(scope="module")
def seconds(server: Server, folder: Path) -> float:
    """How long the evaluation takes that is not stopped."""
    begin = time.monotonic()
    run = start(server, folder, "whole")
    assert run.wait() == 0, run.output
    return time.monotonic() - begin


def test_twenty_kills_change_no_number(server: Server, folder: Path, seconds: float) -> None:
    rng, kills = random.Random(0), 0
    predictions = folder / "results/killed/predictions.jsonl"
    stored = []
    while kills < KILLS:
        run = start(server, folder, "killed")
        # Half of the runs die at a random moment, the others after a few more answers.
        before = predictions.stat().st_size if predictions.exists() else 0
        until = time.monotonic() + rng.uniform(0, seconds)
        more = rng.randrange(1, 1200) if kills % 2 else 10**9
        while time.monotonic() < until + 60 * (kills % 2):
            if predictions.exists() and predictions.stat().st_size >= before + more:
                break
            if run.poll(0.001) is not None:
                break
        if run.poll() is None:
            run.kill()
            kills += 1
            stored.append(predictions.read_bytes().count(b"\n") if predictions.exists() else 0)
        else:  # it was done before the kill: start over
            assert run.status == 0, run.output
            assert outcome(results(folder, "killed")) == outcome(results(folder, "whole"))
            for path in ("killed.json", "killed/predictions.jsonl"):
                (folder / "results" / path).unlink()
    assert len(set(stored)) > KILLS / 4, stored
    run = start(server, folder, "killed")
    assert run.wait() == 0, run.output
    keys = answers_of(folder / "results/killed.json")
    assert len(keys) == len(set(keys)) == ROWS * (SAMPLES + 1)
    assert outcome(results(folder, "killed")) == outcome(results(folder, "whole"))


@pytest.mark.parametrize("devices", ["1", "2"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, STOPPED), (signal.SIGINT, INTERRUPTED)])
def test_a_signal_ends_it_soon_and_leaves_no_process(
    server: Server, folder: Path, devices: str, number: signal.Signals, status: int
) -> None:
    name = f"{devices}-{number.name}"
    run = start(server, folder, name, "--devices", devices, "--limit", "40")
    predictions = folder / f"results/{name}/predictions.jsonl"
    while run.poll(0.01) is None and not (predictions.exists() and predictions.stat().st_size):
        pass
    run.signal(number, None if number == signal.SIGINT else 0)  # Ctrl-C reaches all processes of a terminal
    begin = time.monotonic()
    assert run.wait(20) == status, run.output
    assert time.monotonic() - begin < 8
    assert run.gone()
    assert run.output.count(f"stopped by {number.name}; ") == 1
    assert "Traceback" not in run.output
