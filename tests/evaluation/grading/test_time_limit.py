"""A limited function returns what it returns, or ends in time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_probsft.evaluation.grading import time_limit
from lit_probsft.evaluation.grading.time_limit import OutOfTime, WorkerDied, limited
from tests.evaluation.grading import functions

VALUES = st.lists(st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(), max_size=3)


@settings(max_examples=20)
@given(VALUES)
def test_limited_returns_what_the_function_returns(value: Any) -> None:
    assert limited(functions.echo, value) == value


def test_large_values_pass() -> None:
    assert limited(functions.echo, "x" * 5_000_000) == "x" * 5_000_000


def test_one_worker_serves_many_calls_and_a_new_one_replaces_it() -> None:
    first = limited(functions.pid)
    assert {limited(functions.pid) for _ in range(100)} == {first} != {os.getpid()}
    with pytest.raises(OutOfTime):
        limited(functions.sleep, 5, seconds=0.1)
    second = limited(functions.pid)
    assert {limited(functions.pid) for _ in range(100)} == {second} != {first}


def test_a_call_in_c_that_never_yields_ends_in_time() -> None:
    start = time.monotonic()
    with pytest.raises(OutOfTime, match=r"within 0\.2 s"):
        limited(functions.tower, seconds=0.2)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("function", [functions.exit_at_once, functions.kill_itself, functions.leave])
def test_a_process_that_ends_is_an_error_and_is_replaced(function: Any) -> None:
    with pytest.raises(WorkerDied, match="exit status"):
        limited(function)
    assert limited(functions.add, 1, 2) == 3


def test_a_worker_that_was_killed_while_idle_is_replaced() -> None:
    os.kill(limited(functions.pid), 9)
    time.sleep(0.05)
    assert limited(functions.add, "a", "b") == "ab"


def test_exceptions_come_back() -> None:
    with pytest.raises(ValueError, match="bad"):
        limited(functions.fail, "bad")
    with pytest.raises(RecursionError):
        limited(functions.overflow)
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        limited(functions.fail_oddly)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        limited(functions.nothing_to_pickle)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        limited(lambda: 0)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_a_function_that_needs_much_memory_is_refused() -> None:
    before = limited(functions.pid)
    with pytest.raises(MemoryError):
        limited(functions.allocate, 2 * time_limit.MEMORY)
    assert limited(functions.pid) != before


def test_threads_share_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "MOST_WORKERS", 2)
    monkeypatch.setattr(time_limit, "_pool", pool := time_limit._Pool())
    with ThreadPoolExecutor(8) as threads:
        assert [*threads.map(lambda i: limited(functions.add, i, i), range(100))] == [2 * i for i in range(100)]
        assert 1 <= len(pool.workers) <= 2
        # Waiting for a free worker does not count.
        assert [*threads.map(lambda i: limited(functions.sleep, 0.15, seconds=0.55), range(8))] == ["awake"] * 8
    pool.close()


def test_a_worker_outlives_the_thread_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "_pool", pool := time_limit._Pool())
    found: list[int] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(limited(functions.pid)))
        thread.start()
        thread.join()
    assert found[0] == found[1]
    pool.close()


def test_what_a_function_prints_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert limited(functions.chatter) == "quiet"
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import os, signal, sys, threading, time
from lit_probsft.evaluation.grading.time_limit import MOST_WORKERS, limited
from tests.evaluation.grading import functions
print("start")  # a second time if a worker imported this script
first = limited(functions.pid)
busy = [threading.Thread(target=limited, args=(functions.sleep, 0.3)) for _ in range(MOST_WORKERS)]
[thread.start() for thread in busy]
time.sleep(0.1)
child = os.fork()
if not child:
    signal.alarm(10)
    os._exit(limited(functions.pid) == first)
assert os.waitpid(child, 0)[1] == 0, "a fork waits for, or uses, a worker of its parent"
[thread.join() for thread in busy]
assert limited(functions.echo, 1) == 1
print(not {"torch", "lightning", "transformers", "sympy"} & set(sys.modules))
print(limited(functions.pid), flush=True)
if len(sys.argv) > 1:
    limited(functions.sleep, 60, seconds=2)
"""


def ended(process: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # nobody waits for orphans in some containers
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_script_needs_no_guard_and_leaves_no_process(killed: bool, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), *(["kill me"] if killed else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as script:
        assert script.stdout is not None
        lines = [script.stdout.readline().strip() for _ in range(3)]
        if killed:
            time.sleep(0.5)  # it now waits for its worker
            script.kill()
        assert script.stdout.read() == ""
        assert script.wait() == (-9 if killed else 0)
    assert lines[:2] == ["start", "True"]
    assert ended(int(lines[2]))
