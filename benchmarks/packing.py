"""Packing ten thousand to a million documents into 2048 tokens: fill, time and memory, compared with TRL.

    python -m benchmarks.packing [--train FILE --prompt COLUMN --response COLUMN]

`ours` makes a plan and requests its first micro-batch: which documents share a row, on which rank, at which step.
`trl` is TRL's `pack_dataset` with its defaults, best-fit decreasing within 1000 rows; `trl, one batch` does the same
over all rows at once, which is textbook best-fit decreasing. TRL also copies the tokens into packs, in memory; ours
uses lengths only. Without TRL its variants are skipped.

The lengths are `short`, lognormal around 148 tokens like arithmetic word problems; `wide`, lognormal around 330 with a
long tail, at most 2048; and those of a file, if one is named, with the tokenizer of gsm8k.yaml.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import harness
from lit_probsft.data.batches.packing import PackedPlan

MAX_LENGTH = 2048
RANKS = {"batch_size": 1, "accumulate": 4, "world_size": 8}
DRAWN = {"short": (5.0, 0.4), "wide": (5.8, 0.8)}
"""Mean and standard deviation of the logarithm of a length."""

Lengths = NDArray[np.int64]
Prepare = Callable[[Lengths], Callable[[], int]]


def drawn(shape: str, count: int) -> Lengths:
    """Random lengths of a shape, the same in every call."""
    return np.random.default_rng(0).lognormal(*DRAWN[shape], count).astype(np.int64).clip(10, MAX_LENGTH)


# --- variants: prepare(lengths) returns the call to measure, which returns the number of packs


def ours(lengths: Lengths) -> Callable[[], int]:
    """A plan and its first micro-batch."""
    supervised = lengths // 2

    def call() -> int:
        plan = PackedPlan(lengths, supervised, max_length=MAX_LENGTH, **RANKS)
        plan.micro_batch(0, 0)
        return plan.num_rows

    return call


def trl(lengths: Lengths) -> Callable[[], int]:
    """TRL with its defaults."""
    return _pack_dataset(lengths, {})


def trl_one_batch(lengths: Lengths) -> Callable[[], int]:
    """TRL with all rows in one batch, which the writer also holds as a whole."""
    return _pack_dataset(lengths, {"batch_size": len(lengths), "writer_batch_size": len(lengths)})


def _pack_dataset(lengths: Lengths, options: dict[str, Any]) -> Callable[[], int]:
    import pyarrow
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = pyarrow.array(np.zeros(offsets[-1], dtype=np.int32))
    table = pyarrow.table({"input_ids": pyarrow.LargeListArray.from_arrays(offsets, tokens)})

    def call() -> int:
        return len(pack_dataset(Dataset(table), MAX_LENGTH, map_kwargs={"load_from_cache_file": False, **options}))

    return call


def variants() -> dict[str, Prepare]:
    """All available variants by name."""
    found = {"ours": ours}
    if importlib.util.find_spec("trl") is not None:
        found |= {"trl": trl, "trl, one batch": trl_one_batch}
    return found


# --- measurements


def warmed(prepare: Prepare, lengths: Lengths) -> Callable[[], int]:
    """Warm up on a few documents and return the call."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare(lengths[:100])()
    return prepare(lengths)


def in_turns(lengths: Lengths, rounds: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """The seconds of each variant in each round, and its number of packs."""
    calls = {name: warmed(prepare, lengths) for name, prepare in variants().items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    packs = {}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            packs[name] = call()
            seconds[name].append(time.perf_counter() - start)
    return seconds, packs


def resumed(lengths: Lengths, share: float) -> dict[str, float]:
    """Seconds until a run that resumes after `share` of an epoch has its first micro-batch, and its second."""
    supervised = lengths // 2
    start = time.perf_counter()
    plan = PackedPlan(lengths, supervised, max_length=MAX_LENGTH, **RANKS)
    index = int(share * (plan.num_micro_batches - 2))
    plan.micro_batch(1, index, 3)
    first = time.perf_counter()
    plan.micro_batch(1, index + 1, 3)
    return {"seconds": first - start, "seconds_of_the_next": time.perf_counter() - first}


def measure(name: str, lengths: Lengths, rounds: int) -> dict[str, Any]:
    """Measure all variants on the same lengths."""
    seconds, packs = harness.in_fresh_process(in_turns, lengths, rounds)
    harness.say(f"{name}: " + ", ".join(f"{v} {min(s):.3g} s" for v, s in seconds.items()))
    peaks = {v: harness.peak_extra_bytes(warmed, prepare, lengths) for v, prepare in variants().items()}
    resuming = {place: [resumed(lengths, share) for _ in range(rounds)] for place, share in (("first", 0), ("last", 1))}
    total = int(lengths.sum())
    return {
        "documents": len(lengths),
        "tokens": total,
        "least_packs": -(-total // MAX_LENGTH),
        "variants": {
            variant: {
                "packs": packs[variant],
                "share_full": harness.significant(total / (packs[variant] * MAX_LENGTH), 5),
                "seconds": harness.spread(taken),
                "rounds": harness.rounded(taken),
                "extra_mib": harness.significant(peaks[variant] / harness.MIB),
            }
            for variant, taken in seconds.items()
        },
        "time_ratios": harness.ratios(seconds, "ours"),
        "resume": {
            place: {key: harness.spread(run[key] for run in runs) for key in ("seconds", "seconds_of_the_next")}
            for place, runs in resuming.items()
        },
    }


def file_lengths(options: argparse.Namespace) -> Lengths:
    """The lengths of the file's rows, with a tokenizer trained on them."""
    from lit_probsft.data import BPETokenizer, InstructionDataModule, Rows

    source = Rows(options.train, prompt=options.prompt, response=options.response)
    data = InstructionDataModule(source, tokenizer=BPETokenizer(8192), max_length=MAX_LENGTH, packing=True)
    data.setup("fit")
    return data.plan.lengths


def run(options: argparse.Namespace) -> Path:
    """Measure all data, write and print the result."""
    sets = {"file": file_lengths(options)} if options.train else {}
    sets |= {f"{shape} {count}": drawn(shape, count) for count in options.sizes for shape in options.shapes}
    arguments = {key: value for key, value in vars(options).items() if value is not None}
    skipped = {} if "trl" in variants() else {"trl": "not installed"}
    found: dict[str, Any] = {}
    for name, lengths in sets.items():
        found[name] = measure(name, lengths, options.rounds)
        # Written after each data set, because TRL takes minutes for a million documents.
        content = {"max_length": MAX_LENGTH, "skipped": skipped, "data": found}
        path = harness.write_result("packing", arguments, label=options.label, **content)
    rows = [
        {
            "documents": name,
            "variant": variant,
            "share full": f"{numbers['share_full']:.4f}",
            "packs": str(numbers["packs"]),
            "seconds": numbers["seconds"]["median"],
            "x ours": facts["time_ratios"][variant],
            "extra MiB": numbers["extra_mib"],
            "resume at first": facts["resume"]["first"]["seconds"]["median"] if variant == "ours" else None,
            "at last": facts["resume"]["last"]["seconds"]["median"] if variant == "ours" else None,
        }
        for name, facts in found.items()
        for variant, numbers in facts["variants"].items()
    ]
    print(harness.table(rows))
    print(f"\n{path}")
    return path


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6], help="numbers of documents")
    parser.add_argument(
        "--shapes", nargs="+", choices=DRAWN, default=list(DRAWN), help="distributions of random lengths"
    )
    parser.add_argument("--label", default="", help="part of the result file's name")
    parser.add_argument("--train", help="a .jsonl, .json, .csv or .parquet file, for its lengths as well")
    parser.add_argument("--prompt", default="prompt", help="column, or a template of columns")
    parser.add_argument("--response", default="response", help="column, or a template of columns")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    return parser.parse_args(args)


if __name__ == "__main__":
    run(parse())
