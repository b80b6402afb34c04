"""From a file of rows to tokens and masks on disk: rows and tokens per second, compared with `datasets.map` and TRL.

    python -m benchmarks.tokenization [--train FILE --prompt COLUMN --response COLUMN]

`ours` is `InstructionDataModule.setup` with an empty cache: it reads and hashes the file, checks every row and writes
the tokens. `transformers` is `datasets.map` with `apply_chat_template` and its mask of the assistant's tokens, row by
row; `transformers, batched` does the same a thousand rows at a time; `trl` is the constructor of SFTTrainer with
`assistant_only_loss`. These three get their rows as conversations that `datasets` has already read. All use ChatML with
generation marks as chat template. Without TRL its variant is skipped.

`single` is a prompt and a response; `multi` is a system text and four such pairs in one conversation. The rows come
from a file, if one is named; otherwise they are random word problems.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# torch is not imported here, because the processes that tokenize import this module, and those of the command line do
# not import torch either.

TURNS = 4
"""Pairs of prompt and response in a conversation of `multi`."""

Call = Callable[[], Mapping[str, int]]
"""Tokenizes and returns the numbers of documents, tokens and supervised tokens."""


@dataclass(frozen=True)
class Job:
    """The input of every variant.

    Attributes:
        file: JSON lines with `messages`, and for `single` also `prompt` and `response`.
        few: the same with few rows, for the warm-up.
        columns: the columns that ours reads.
        tokenizer: of all variants.
        processes: number of processes.
    """

    file: str
    few: str
    columns: dict[str, str]
    tokenizer: Any
    processes: int


# --- rows


def drawn(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Random word problems with solutions, about as long as GSM8K's and the same in every call."""
    chance = random.Random(seed)
    names, things = ("Ada", "Ben", "Chloé", "Dev", "Elif"), ("apples", "pencils", "train tickets", "marbles", "loaves")
    rows = []
    for _ in range(count):
        total, question, answer = chance.randint(2, 60), "", ""
        name, thing = chance.choice(names), chance.choice(things)
        for _ in range(chance.randint(2, 6)):
            more, who = chance.randint(2, 90), chance.choice(names)
            question += (
                f"{who} gives {name} {more} more {thing} on the way to the market, which {name} keeps in a box. "
            )
            answer += f"{name} then has {total}+{more} = <<{total}+{more}={total + more}>>{total + more} {thing}.\n"
            total += more
        rows.append((f"{question}How many {thing} does {name} have in the end?", f"{answer}#### {total}"))
    return rows


def rows_of(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Prompts and responses from the file, or random ones."""
    if not options.train:
        return drawn(options.rows or 4000)
    from lit_probsft.data import Rows

    source = Rows(options.train, prompt=options.prompt, response=options.response, limit=options.rows)
    turns = [source.conversation(row) for row in source.load()]
    return [(prompt["content"], response["content"]) for prompt, response in turns]


def write_rows(pairs: Sequence[tuple[str, str]], shape: str, path: Path) -> str:
    """Write the file of a job."""
    size = {"single": 1, "multi": TURNS}[shape]
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(pairs), size):
            row: dict[str, Any] = {"messages": [{"role": "system", "content": "Solve it step by step."}]}
            if shape == "single":
                row = {"prompt": pairs[start][0], "response": pairs[start][1], "messages": []}
            for prompt, response in pairs[start : start + size]:
                row["messages"] += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return str(path)


# --- variants: each takes a job and returns the call to measure


def ours(job: Job) -> Call:
    """The data module, from the file to tokens on disk."""
    from lit_probsft.data import InstructionDataModule, Rows

    def call() -> Mapping[str, int]:
        with tempfile.TemporaryDirectory() as cache:
            source = Rows(job.file, **job.columns)
            data = InstructionDataModule(
                source, tokenizer=job.tokenizer, num_proc=job.processes, cache_dir=cache, max_length=2**20
            )
            data.setup("fit")
            report = data.report["train"]
        return {name: report[key] for name, key in COUNTED.items()}

    return call


COUNTED = {"documents": "kept", "tokens": "tokens", "supervised": "supervised_tokens"}


def by_transformers(job: Job) -> Call:
    """`datasets.map` row by row."""
    rows, tokenizer = conversations(job), job.tokenizer

    def tokenize(row: Mapping[str, Any]) -> dict[str, Any]:
        found = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        return {"input_ids": found["input_ids"], "labels": labels(found["input_ids"], found["assistant_masks"])}

    return lambda: counted(rows.map(tokenize, **mapping(job)))


def by_transformers_batched(job: Job) -> Call:
    """`datasets.map` with a thousand rows at a time."""
    rows, tokenizer = conversations(job), job.tokenizer

    def tokenize(batch: Mapping[str, Any]) -> dict[str, Any]:
        found = tokenizer.apply_chat_template(batch["messages"], return_dict=True, return_assistant_tokens_mask=True)
        both = zip(found["input_ids"], found["assistant_masks"], strict=True)
        return {"input_ids": found["input_ids"], "labels": [labels(ids, mask) for ids, mask in both]}

    return lambda: counted(rows.map(tokenize, batched=True, **mapping(job)))


def by_trl(job: Job) -> Call:
    """The preparation of rows in TRL's trainer, with the smallest possible model."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    rows = conversations(job)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(job.tokenizer), **sizes))

    def call() -> Mapping[str, int]:
        with tempfile.TemporaryDirectory() as folder:
            config = SFTConfig(
                output_dir=folder,
                assistant_only_loss=True,
                max_length=None,
                dataset_num_proc=job.processes if job.processes > 1 else None,
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
            )
            trainer = SFTTrainer(model, args=config, train_dataset=rows, processing_class=job.tokenizer)
            return counted(trainer.train_dataset)

    return call


def conversations(job: Job) -> Any:
    """The rows as a data set of `datasets`, read once."""
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    return datasets.Dataset.from_json(job.file, cache_dir=str(Path(job.file).parent)).select_columns("messages")


def mapping(job: Job) -> dict[str, Any]:
    """Arguments of `map`."""
    return {"remove_columns": ["messages"], "num_proc": job.processes if job.processes > 1 else None}


def labels(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """The ids of the assistant's tokens, -100 elsewhere."""
    return [token if supervised else -100 for token, supervised in zip(ids, mask, strict=True)]


def counted(found: Any) -> dict[str, int]:
    """Documents, tokens and supervised tokens of a data set."""
    import pyarrow.compute

    columns = found.with_format("arrow")[:]
    supervised = pyarrow.compute.not_equal(pyarrow.compute.list_flatten(columns["labels"]), -100)
    tokens = pyarrow.compute.sum(pyarrow.compute.list_value_length(columns["input_ids"])).as_py()
    return {"documents": len(found), "tokens": tokens, "supervised": pyarrow.compute.sum(supervised).as_py()}


def variants() -> dict[str, Callable[[Job], Call]]:
    """All available variants by name."""
    found = {"ours": ours, "transformers": by_transformers, "transformers, batched": by_transformers_batched}
    if importlib.util.find_spec("trl") is not None:
        found["trl"] = by_trl
    return found


# --- measurements


def in_turns(job: Job, rounds: int) -> tuple[dict[str, Mapping[str, int]], dict[str, dict[str, list[float]]]]:
    """The counts of each variant, and its wall-clock and CPU seconds (of all its processes) in each round."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    calls = {}
    for name, prepare in variants().items():
        prepare(replace(job, file=job.few))()
        calls[name] = prepare(job)
    made: dict[str, Mapping[str, int]] = {}
    taken: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu_seconds": []} for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start, cpu_start = time.perf_counter(), processor_seconds()
            made[name] = call()
            taken[name]["seconds"].append(time.perf_counter() - start)
            taken[name]["cpu_seconds"].append(processor_seconds() - cpu_start)
    return made, taken


def processor_seconds() -> float:
    """CPU seconds of this process and of its child processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(job: Job, rounds: int) -> dict[str, Any]:
    """Measure all variants on the same job, in a fresh process."""
    from benchmarks import harness

    made, taken = harness.in_fresh_process(in_turns, job, rounds)
    expected = made["transformers"]
    facts: dict[str, Any] = {**expected, "agree": all(found == expected for found in made.values()), "variants": {}}
    for name, times in taken.items():
        facts["variants"][name] = {
            "made": made[name],
            "rounds": {kind: harness.rounded(values) for kind, values in times.items()},
            **{kind: harness.spread(values) for kind, values in times.items()},
            "rows_per_second": harness.spread(expected["documents"] / value for value in times["seconds"]),
            "tokens_per_second": harness.spread(expected["tokens"] / value for value in times["seconds"]),
            "rows_per_cpu_second": harness.spread(expected["documents"] / value for value in times["cpu_seconds"]),
            "tokens_per_cpu_second": harness.spread(expected["tokens"] / value for value in times["cpu_seconds"]),
        }
    for kind, key in (("seconds", "time_ratios"), ("cpu_seconds", "cpu_ratios")):
        facts[key] = harness.ratios({name: times[kind] for name, times in taken.items()}, "ours")
    return facts


def jobs(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Job]]:
    """The jobs of all combinations, by name."""
    from lit_probsft.data.tokens.tokenizers import BPETokenizer, ByteTokenizer

    pairs = rows_of(options)
    sources = {"byte": ByteTokenizer(), "bpe": BPETokenizer(8192)}
    loaded = {
        name: sources[name].load(lambda: (text for pair in pairs for text in pair)) for name in options.tokenizers
    }
    for shape in options.shapes:
        file = write_rows(pairs, shape, folder / f"{shape}.jsonl")
        few = write_rows(pairs[:64], shape, folder / f"few-{shape}.jsonl")
        columns = {"messages": "messages"} if shape == "multi" else {"prompt": "prompt", "response": "response"}
        for name, tokenizer in loaded.items():
            for processes in options.processes:
                yield f"{shape}, {name}, {processes}", Job(file, few, columns, tokenizer, processes)


def run(options: argparse.Namespace) -> Path:
    """Measure all jobs, write and print the result."""
    from benchmarks import harness

    arguments = {key: value for key, value in vars(options).items() if value is not None}
    skipped = {} if "trl" in variants() else {"trl": "not installed"}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, job in jobs(options, Path(folder)):
            found[name] = facts = measure(job, options.rounds)
            harness.say(
                f"{name}: " + ", ".join(f"{v} {f['seconds']['min']:.3g} s" for v, f in facts["variants"].items())
            )
            # Written after each job, because all of them take long.
            path = harness.write_result("tokenization", arguments, label=options.label, skipped=skipped, data=found)
    rows = [
        {
            "data, tokenizer, processes": name,
            "variant": variant,
            "rows/s": numbers["rows_per_second"]["median"],
            "tokens/s": numbers["tokens_per_second"]["median"],
            "rows/s per core": numbers["rows_per_cpu_second"]["median"],
            "tokens/s per core": numbers["tokens_per_cpu_second"]["median"],
            "time x ours": facts["time_ratios"][variant],
            "processors x ours": facts["cpu_ratios"][variant],
            "same tokens": str(numbers["made"] == facts["variants"]["ours"]["made"]),
        }
        for name, facts in found.items()
        for variant, numbers in facts["variants"].items()
    ]
    print(harness.table(rows))
    print(f"\n{path}")
    return path


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokenization", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--train", help="a .jsonl, .json, .csv or .parquet file; by default the rows are random")
    parser.add_argument("--prompt", default="prompt", help="column, or a template of columns")
    parser.add_argument("--response", default="response", help="column, or a template of columns")
    parser.add_argument("--rows", type=int, help="number of rows; by default all rows of the file, or 4000 random ones")
    parser.add_argument("--shapes", nargs="+", choices=("single", "multi"), default=["single", "multi"])
    parser.add_argument("--tokenizers", nargs="+", choices=("byte", "bpe"), default=["byte", "bpe"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="num_proc of every variant")
    parser.add_argument("--label", default="", help="part of the result file's name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    return parser.parse_args(args)


if __name__ == "__main__":
    run(parse())
