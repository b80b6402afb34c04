"""Runs the command line in processes forked from one that has imported everything, as imports take longer than a run.

Only the start of the interpreter is replaced: each run has its own session, output and exit status, and ends
independently. Where Lightning would start `python` for another rank, that rank is forked too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_ROOT = Path(__file__).parents[2]
_QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # A process with threads must not be forked.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}
_HEAVY = (
    "lit_probsft.cli.fit",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "accelerate.utils",
)
_MARK = "TESTS_CRASH_RUN"


# --- the tests' side


class Server:
    """Forks runs; several may run at a time."""

    def __init__(self, cache: Path) -> None:
        self.environment = {**os.environ, **_QUIET, "LIT_PROBSFT_CACHE": str(cache), "PYTHONPATH": str(_ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=_ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._read() == "ready"
        self.runs: list[Run] = []

    def start(self, *args: Any, cwd: Path, **faults: Any) -> Run:
        """Start `python -m lit_probsft *args` in `cwd`, with faults for `faults.install`."""
        log = cwd / f"output-{uuid.uuid4().hex}"
        return Run(self, self.ask(start=[*map(str, args)], cwd=str(cwd), log=str(log), faults=faults), log)

    def run(self, *args: Any, cwd: Path, timeout: float = 120, **faults: Any) -> Run:
        """`start`, then wait for the run to end."""
        run = self.start(*args, cwd=cwd, **faults)
        run.wait(timeout)
        return run

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the fork server ended with status {self._process.wait()}"
        return json.loads(line)

    def close(self) -> None:
        """Stop the server, and kill runs that a failed test has left behind."""
        for run in self.runs:
            if run.processes():
                run.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Run:
    """A started run, with all processes of its session."""

    def __init__(self, server: Server, pid: int, log: Path) -> None:
        self._server, self.pid, self._log = server, pid, log
        server.runs.append(self)
        self.status: int | None = None

    def wait(self, timeout: float = 120) -> int:
        """Wait for the exit status, which is negative for a signal, as in `subprocess`.

        Raises:
            AssertionError: the run did not end in time; it has been killed.
        """
        status = self.poll(timeout)
        if status is None:
            left = self.processes()
            self.kill()
            raise AssertionError(f"not finished after {timeout:g} s, processes {left}:\n{self.output[-6000:]}")
        return status

    def poll(self, patience: float = 0.0) -> int | None:
        """The exit status; None if the run has not ended after `patience` seconds."""
        if self.status is None:
            self.status = self._server.ask(wait=self.pid, timeout=patience)
        return self.status

    def kill(self) -> None:
        """`kill -9` all processes of the run at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.poll(30)
        assert self.gone(30), self.processes()

    def signal(self, number: int, rank: int | None) -> None:
        """Send a signal to one rank, or to the whole process group."""
        if rank is None:
            os.killpg(self.pid, number)
        else:
            os.kill(self.ranks()[rank], number)

    def ranks(self) -> list[int]:
        """Process ids; the first rank starts the others."""
        return [self.pid, *(pid for pid in self.processes() if pid != self.pid)]

    def processes(self) -> list[int]:
        """Ids of the session's living processes."""
        return [pid for pid, session in _living().items() if session == self.pid]

    def gone(self, patience: float = 5.0) -> bool:
        """Whether all processes of the run end within `patience` seconds."""
        until = time.monotonic() + patience
        while self.processes():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    @property
    def output(self) -> str:
        """Everything that the run has written to stdout and stderr."""
        return self._log.read_text(errors="replace")


class Shell(Run):
    """A run in a new interpreter, as a user starts it."""

    def __init__(self, server: Server, *command: str, cwd: Path) -> None:
        self._mark, log = uuid.uuid4().hex, cwd / f"output-{uuid.uuid4().hex}"
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=cwd,
                env={**server.environment, _MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        super().__init__(server, self._process.pid, log)

    def poll(self, patience: float = 0.0) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.status = self._process.wait(patience)
        return self.status

    def kill(self) -> None:
        for pid in self.processes():  # torchrun's workers have sessions of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().kill()

    def ranks(self) -> list[int]:
        found = {}
        for pid in self.processes():
            with contextlib.suppress(OSError, KeyError):
                found[int(_environment(pid)["RANK"])] = pid
        return [found[rank] for rank in sorted(found)]

    def processes(self) -> list[int]:
        found = []
        for pid in _living():
            with contextlib.suppress(OSError):
                if _environment(pid).get(_MARK) == self._mark:
                    found.append(pid)
        return found


def _living() -> dict[int, int]:
    """The session of each living process, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    found[int(entry.name)] = int(fields[3])
    return dict(sorted(found.items()))


def _environment(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(line.partition("=")[::2] for line in lines)  # type: ignore[misc]


# --- the server's side


def _serve() -> None:
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some modules print when they are imported

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    torch.set_num_threads(1)
    for name in _HEAVY:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("deepspeed")  # transformers imports it when it exports
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a process with {len(threads)} threads must not be forked"
    answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer(_fork(request["start"], request["cwd"], request["log"], request["faults"]))
        else:
            answer(_wait(request["wait"], request["timeout"]))


def _wait(pid: int, timeout: float) -> int | None:
    until = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)


def _fork(args: list[str], cwd: str, log: str, faults: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.chdir(cwd)
    sys.argv = ["lit_probsft", *args]
    _command(faults)
    raise AssertionError


def _command(faults: dict[str, Any]) -> None:
    """Run the command line with its faults and exit; never returns."""
    status: Any = 1
    try:
        import lightning.pytorch.strategies.launchers.subprocess_script as launcher

        from lit_probsft.cli.shell import run
        from tests.crash.faults import install

        launcher.subprocess = SimpleNamespace(Popen=lambda *_, env, **__: _Rank(env, faults))  # type: ignore[attr-defined]
        install(**faults)
        run()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


class _Rank:
    """Stands in for the `subprocess.Popen` with which Lightning starts another rank."""

    def __init__(self, environment: dict[str, str], faults: dict[str, Any]) -> None:
        self.returncode: int | None = None
        self._lock = threading.Lock()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.clear()
            os.environ.update(environment)
            _command(faults)

    def poll(self) -> int | None:
        with self._lock:  # several threads ask
            if self.returncode is None:
                self.returncode = _wait(self.pid, 0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() >= until:
                raise subprocess.TimeoutExpired("rank", timeout or 0)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


if __name__ == "__main__":
    _serve()
