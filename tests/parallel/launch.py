"""Launches processes under a time limit and checks that they leave none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

_MARK = "TESTS_PARALLEL_LAUNCH"


def launch(arguments: list[str], *, timeout: float, cwd: Path | None = None, **environment: str) -> str:
    """Run `python *arguments` and return its stdout.

    torchrun gives each worker its own session, so killing a process group would miss them. A mark in the environment
    identifies all descendants of this launch.

    Raises:
        AssertionError: the command failed, took too long or left a process behind; the message ends with stderr.
    """
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
        **environment,
        _MARK: mark,
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        # Files rather than pipes: a process left behind would keep a pipe open and block this one.
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, cwd=cwd, stdout=out, stderr=errors, start_new_session=True
        )
        try:
            status: int | str = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = f"not finished after {timeout:g} s"
        finally:
            # Helper processes get time to end after their parents, except after a timeout.
            left = _descendants(mark, patience=5.0 if process.poll() is not None else 0.0)
            _kill(process, mark)
        for file in (out, errors):
            file.seek(0)
        output, tail = out.read(), errors.read()[-6000:]
    assert status == 0, f"{' '.join(arguments)}: {status}\n{tail}"
    assert not left, f"{' '.join(arguments)}: left behind {left}\n{tail}"
    return output


def torchrun(module: str, *arguments: str, timeout: float, processes: int = 2, **environment: str) -> str:
    """Run a module under torchrun."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", module]
    return launch([*command, *arguments], timeout=timeout, **environment)


def _descendants(mark: str, patience: float) -> dict[int, str]:
    """Command lines of the processes with this mark that are still alive after `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        found = {}
        for entry in Path("/proc").iterdir() if Path("/proc/self").exists() else ():
            try:
                if entry.name.isdigit() and f"{_MARK}={mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
            except OSError:  # it has ended, or belongs to another user
                continue
        if not found or time.monotonic() >= until:
            return found
        time.sleep(0.1)


def _kill(process: subprocess.Popen[str], mark: str) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while left := _descendants(mark, patience=0.0):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
