"""A child whose parent is gone ends at once, and a signal ends a command with its status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_fit import config

ROOT = Path(__file__).parents[2]
_CHILD = """
import os, time
from lit_probsft.parallel.parent import exit_with_launcher
exit_with_launcher()
print(os.getpid(), flush=True)
time.sleep(60)
"""
_PARENT = f"""
import os, subprocess, sys
environment = {{**os.environ, "LIT_PROBSFT_PARENT": str(os.getpid()), "LOCAL_RANK": "1"}}
subprocess.Popen([sys.executable, "-c", {_CHILD!r}], env=environment).wait()
"""


def processes(mark: str) -> list[int]:
    """The processes with this text in their environment, without those that have ended."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if "\nState:\tZ" not in _read(f"/proc/{pid}/status")]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return "\nState:\tZ"


def assert_gone(mark: str, seconds: float = 2) -> None:
    until = time.monotonic() + seconds
    while left := processes(mark):
        assert time.monotonic() < until, left
        time.sleep(0.02)


def start(mark: str, *command: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TESTS_PARENT": mark, "CUDA_VISIBLE_DEVICES": ""}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], env=environment, **output, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_ends_with_its_launcher(tmp_path: Path) -> None:
    parent = start(str(tmp_path), "-c", _PARENT)
    assert parent.stdout is not None
    assert parent.stdout.readline().strip().isdigit()
    parent.kill()
    parent.wait()
    assert_gone(str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("number", "delay"), [(2, 0), (3, 0.5), (4, 1), (4, 5)])
def test_no_process_outlives_a_killed_start(tmp_path: Path, number: int, delay: float) -> None:
    """Killed `delay` seconds after it has `number` processes: ranks, or processes that tokenize."""
    several = {"trainer__strategy": "ddp", "trainer__devices": 2, "data__num_proc": 2, "trainer__max_epochs": 50}
    path = config(tmp_path, **several, data__cache_dir=str(tmp_path / "cache"))
    run = start(str(tmp_path), "-m", "lit_probsft", "fit", "--config", str(path), cwd=tmp_path)
    try:
        until = time.monotonic() + 180
        while len(started := processes(str(tmp_path))) < number and run.poll() is None:
            assert time.monotonic() < until, started
            time.sleep(0.1)
        time.sleep(delay)
    finally:
        status = run.poll()
        run.kill()
        run.wait()
    assert status is None
    assert_gone(str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_generation_ends_predict(tmp_path: Path, devices: int, number: int, status: int) -> None:
    several = {"trainer__strategy": "ddp", "trainer__devices": 2} if devices == 2 else {}
    path = config(tmp_path, **several, model__generation={"max_new_tokens": 150}, data__batch_size=1)
    flags = ("--weights=base", "--trainer.enable_progress_bar=false")
    run = start(str(tmp_path), "-m", "lit_probsft", "predict", "--config", str(path), *flags, cwd=tmp_path)
    assert run.stdout is not None
    lines = iter(run.stdout.readline, "")
    assert any(line.startswith("data.") for line in lines)  # the rows are tokenized
    run.send_signal(number)
    begun = time.monotonic()
    rest = run.communicate(timeout=30)[0]
    assert time.monotonic() - begun < 15
    assert run.returncode in (status, -number), rest  # a shell reports both alike
    assert "Traceback" not in rest
    assert rest.count("lit_probsft: ") == 1, rest
    assert not list(tmp_path.rglob("predictions.jsonl"))
    assert_gone(str(tmp_path))
