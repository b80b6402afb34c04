"""Compares variants in one run: interleaved rounds, ratios within a round, memory in fresh processes, one JSON file.

A single time on a shared machine means little, but two times measured one after the other show which is smaller. So
variants take turns (A B C A B C ...), a disturbance affects all of them, and a ratio is the median over rounds of the
ratio within a round. The same is done for CPU time, which does not include other programs.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import math
import multiprocessing
import multiprocessing.util
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
MIB = 2**20


# --- timing in this process


@dataclass(frozen=True)
class Variant:
    """One way to do the work: a name, and a callable that does it and returns values to check."""

    name: str
    call: Callable[[], Mapping[str, float]]


@dataclass
class Timing:
    """Seconds of one variant in each round, and the values that its warm-up returned."""

    values: dict[str, float]
    seconds: list[float] = field(default_factory=list)
    """Wall-clock time."""
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU time of this process."""

    def summary(self) -> dict[str, Any]:
        """The timing as plain data."""
        return {
            "seconds": spread(self.seconds),
            "cpu_seconds": spread(self.cpu_seconds),
            "rounds": {"seconds": rounded(self.seconds), "cpu_seconds": rounded(self.cpu_seconds)},
            "values": self.values,
        }


def time_variants(
    variants: Sequence[Variant],
    *,
    rounds: int,
    warmups: int = 1,
    synchronize: Callable[[], None] = lambda: None,
    inspect: Callable[[], Mapping[str, float]] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Timing]:
    """Warm up every variant, then time them in turn.

    Args:
        variants: the variants to time.
        rounds: how often each is timed.
        warmups: untimed calls of each, at least one; the values of the last one are kept.
        synchronize: waits for the device.
        inspect: called after a variant's last warm-up; its values are kept with those of the variant.
        report: called with a line after each round.
    """
    timings = {}
    for variant in variants:
        for _ in range(max(warmups, 1)):
            values = dict(variant.call())
        synchronize()
        timings[variant.name] = Timing({**values, **(inspect() if inspect else {})})
    for number in range(rounds):
        gc.collect()
        for variant in variants:
            synchronize()
            start, cpu_start = time.perf_counter(), time.process_time()
            variant.call()
            synchronize()
            timings[variant.name].seconds.append(time.perf_counter() - start)
            timings[variant.name].cpu_seconds.append(time.process_time() - cpu_start)
        report(f"round {number + 1}/{rounds}: " + ", ".join(f"{n} {t.seconds[-1]:.3g} s" for n, t in timings.items()))
    return timings


def ratios(rounds: Mapping[str, Sequence[float]], reference: str) -> dict[str, float]:
    """For each variant, the median over rounds of its number divided by the reference's in the same round."""
    base = rounds[reference]
    return {
        name: significant(statistics.median(x / y for x, y in zip(values, base, strict=True)))
        for name, values in rounds.items()
    }


def agreement(values: Mapping[str, float], expected: float, tolerance: float) -> dict[str, Any]:
    """The relative error of each value, and whether all are within the tolerance."""
    errors = {name: abs(value - expected) / abs(expected) for name, value in values.items()}
    return {
        "expected": expected,
        "tolerance": tolerance,
        "relative_error": {name: significant(error, 2) for name, error in errors.items()},
        "agree": all(error <= tolerance for error in errors.values()),  # false for NaN
    }


# --- memory


def peak_extra_bytes(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """The peak that a call adds to the resident memory of a fresh process.

    `prepare(*arguments)` runs in the new process and returns the call to measure. It should run the same code on
    a small input first; otherwise the libraries' pages that are loaded on first use count as well. Both must be
    picklable.
    """
    return int(in_fresh_process(_peak, prepare, arguments))


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process and return its result. Function, arguments and result must be picklable."""
    with _Child(_send_result, function, arguments) as child:
        return child.receive()


def _send_result(connection: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connection.send(("result", function(*arguments)))


def _peak(prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> int:
    call = prepare(*arguments)
    gc.collect()
    _reset_peak()
    before = _memory("VmRSS")
    call()
    return _memory("VmHWM") - before


def cuda_extra_bytes(call: Callable[[], Any]) -> int:
    """The peak that a call adds to the GPU memory of tensors, as PyTorch's allocator counts it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _reset_peak() -> None:
    """Reset the peak resident size (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str) -> int:
    """`VmRSS` (resident size) or `VmHWM` (its peak), in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"/proc/self/status has no {name}"
    return int(found[1]) * 1024


# --- training loops, each in a process of its own


class Gate:
    """Blocks a training loop until it is its turn.

    The loop calls `open` once before its first step and `step` after each step; both may block. The loop of a trainer
    calls `step` from a callback, so that a whole trainer can take part in a round.
    """

    def __init__(self, connection: Any, synchronize: Callable[[], None] = lambda: None) -> None:
        self._connection, self._synchronize = connection, synchronize
        self._left, self._counts = 0, dict[str, int]()
        self._started = self._cpu_started = 0.0

    def open(self) -> None:
        """Wait until some steps are requested, then start the clock."""
        order = self._connection.recv()
        if order is None:
            # A trainer would catch an exception, save, log and clean up.
            multiprocessing.util._exit_function()
            os._exit(0)
        self._left, self._counts = order, {}
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        else:
            _reset_peak()
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def step(self, counts: Mapping[str, int]) -> None:
        """Report a finished optimizer step; `counts` are summed over the block."""
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count
        self._left -= 1
        if self._left:
            return
        self._synchronize()
        taken = {"seconds": time.perf_counter() - self._started, "cpu_seconds": time.process_time() - self._cpu_started}
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else _memory("VmHWM")
        self._connection.send(("result", {**taken, "peak_bytes": peak, **self._counts}))
        self.open()


@dataclass(frozen=True)
class Loop:
    """A named training loop: `run(gate, *arguments)` runs in a fresh process until the gate stops it."""

    name: str
    run: Callable[..., None]
    arguments: tuple[Any, ...] = ()


def time_loops(
    loops: Sequence[Loop],
    *,
    rounds: int,
    steps: int,
    warmup_steps: int = 2,
    one_at_a_time: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, list[dict[str, float]]]:
    """Run blocks of steps in turn. Returns seconds, peak memory and the loop's own counts, per loop and round.

    Args:
        loops: the loops to time.
        rounds: blocks of each loop.
        steps: optimizer steps of a block.
        warmup_steps: steps of an untimed first block; 0 for none.
        one_at_a_time: run one loop to its end before the next starts, without interleaving: for a device that runs
            nothing else and whose memory holds one loop only.
        report: called with a line after each block.
    """
    blocks: dict[str, list[dict[str, float]]] = {loop.name: [] for loop in loops}
    groups = [[loop] for loop in loops] if one_at_a_time else [loops]
    for group in groups:
        children: dict[str, _Child] = {}
        try:
            for loop in group:
                children[loop.name] = child = _Child(_run_loop, loop.run, loop.arguments)
                if warmup_steps:  # one loop at a time, because building a model would disturb a timed block
                    child.ask(warmup_steps)
                report(f"{loop.name}: ready")
            for number in range(rounds):
                for name, child in children.items():
                    blocks[name].append(block := child.ask(steps))
                    report(f"round {number + 1}/{rounds}: {name} {block['tokens'] / block['seconds']:.0f} tokens/s")
        finally:
            for child in children.values():
                child.__exit__()
    return blocks


def _run_loop(connection: Any, run: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    run(Gate(connection, synchronize), *arguments)
    raise RuntimeError("the loop has ended; it must run until the gate stops it")


class _Child:
    """A spawned process with a pipe; its errors are raised here."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would start with this process's memory
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_guarded, args=(theirs, target, arguments))
        # A thread that spins while it waits takes a core from the thread that it waits for if cores are shared, and its
        # spinning would count as CPU time of the work.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._process.start()
        theirs.close()

    def ask(self, order: Any) -> Any:
        """Send a request and wait for the answer."""
        self._connection.send(order)
        return self.receive()

    def receive(self) -> Any:
        """Wait for an answer."""
        try:
            kind, content = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a benchmark's process ended with status {self._process.exitcode}") from None
        if kind == "error":
            raise RuntimeError(f"in a benchmark's process:\n{content}")
        return content

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # it may have exited
            self._connection.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._connection.close()


def _guarded(connection: Any, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # The libraries' messages in every process would hide the progress; errors come through the pipe.
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    try:
        target(connection, *arguments)
    except Exception:
        connection.send(("error", traceback.format_exc()))


# --- the result file


def write_result(
    benchmark: str, arguments: Mapping[str, Any], device: str = "cpu", label: str = "", **content: Any
) -> Path:
    """Write the self-describing `results/<benchmark>[-<label>]-<machine>.json`; an older file is replaced."""
    machine = describe_machine(device)
    result = {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "versions": _versions(),
        "commit": COMMIT,
        "command": f"python -m benchmarks.{benchmark}",
        # The path is specific to one machine; the file's name identifies the data.
        "arguments": {key: Path(value).name if key == "train" else value for key, value in arguments.items()},
        **content,
    }
    folder = Path(arguments.get("results") or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("-".join(part for part in (benchmark, label, machine["slug"]) if part) + ".json")
    result["arguments"].pop("results", None)
    path.write_text(json.dumps(_plain(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """CPU, cores, memory, and the GPU if it was measured; `slug` is part of file names."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    name = f"cuda-{facts['gpu']}" if device == "cuda" else f"cpu-{facts['cpu']}-{cores}c"
    return {"slug": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"), **facts}


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "lightning", "transformers", "tokenizers", "datasets", "trl", "accelerate"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str:
    """The commit of this source, followed by `+` if the package has uncommitted changes."""

    def git(*command: str) -> str:
        where = Path(__file__).parent.parent
        return subprocess.run(["git", *command], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "lit_probsft") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


COMMIT = _commit()
"""Read at import, because the working tree may change before the result is written."""


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest, largest."""
    values = list(values)
    return {
        "median": significant(statistics.median(values)),
        "min": significant(min(values)),
        "max": significant(max(values)),
    }


def rounded(values: Iterable[float]) -> list[float]:
    """Four significant digits each."""
    return [significant(value) for value in values]


def significant(value: float, digits: int = 4) -> float:
    """Round to a number of significant digits; a shared machine gives no more."""
    return float(f"{value:.{digits}g}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows with the same keys as an aligned Markdown table."""
    if not rows:
        return ""
    heads = list(rows[0])
    cells = [heads, *([_cell(row.get(head)) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Replace NaN and infinity by None, because JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(line: str) -> None:
    """Print progress to stderr, so that the table on stdout can be redirected."""
    print(line, file=sys.stderr, flush=True)
