"""A complete run on real instructions: the command line fits a Qwen2 with 20M random weights, with NLL and with NegP.

    python -m benchmarks.gsm8k --train train.jsonl

The baseline is the unigram entropy of the training answers: the NLL of a model that knows only how often each token
occurs. The settings are in gsm8k.yaml.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import harness
from lit_probsft.cli.commands import main
from lit_probsft.head.checks import IGNORE_INDEX

CONFIG = Path(__file__).with_name("gsm8k.yaml")


def unigram_entropy(batches: Iterable[Mapping[str, Any]]) -> tuple[float, int]:
    """The entropy, in nats, of the supervised tokens' frequencies, and the number of tokens."""
    frequency = torch.zeros(0, dtype=torch.long)
    for batch in batches:
        labels = batch["labels"][:, 1:]
        found = torch.bincount(labels[labels != IGNORE_INDEX], minlength=len(frequency))
        found[: len(frequency)] += frequency
        frequency = found
    total = int(frequency.sum())
    return float(torch.special.entr(frequency.double() / total).sum()), total


def curve(metrics: Path, names: Sequence[str]) -> list[dict[str, float]]:
    """The rows of a metrics.csv that have one of these columns, with the step and these columns only."""
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = [{k: harness.significant(float(v), 6) for k, v in row.items() if v} for row in csv.DictReader(file)]
    kept = [{k: row[k] for k in ("step", *names) if k in row} for row in rows]
    return [row for row in kept if len(row) > 1]


def fit(objective: str, options: argparse.Namespace, runs: Path) -> dict[str, Any]:
    """Run the command line once and return the results in its folder."""
    command = [
        "fit",
        f"--config={options.config}",
        f"--name={objective}",
        f"--runs_dir={runs}",
        f"--model.objective={objective}",
        f"--data.train.path={options.train}",
        f"--trainer.max_steps={options.steps}",
        *options.flags,
    ]
    cli = main(command)
    folder = runs / objective
    record = cli.trainer.callback_metrics
    entropy, tokens = unigram_entropy(cli.datamodule.train_dataloader())
    before = cli.model.initial_metrics
    return {
        "val_before": {name: harness.significant(value, 6) for name, value in before.items()},
        "val_after": {k: harness.significant(float(v), 6) for k, v in record.items() if k.startswith("val/")},
        "unigram_entropy": harness.significant(entropy, 6),
        "nats_below_unigram": harness.significant(entropy - float(record["val/nll"]), 4),
        "training_answer_tokens": tokens,
        "parameters": sum(p.numel() for p in cli.model.model.parameters()),
        "skipped_steps": cli.model.skipped_steps,
        "uniform_nll": harness.significant(math.log(cli.model.model.config.vocab_size), 6),
        "train_curve": curve(folder / "metrics.csv", ("train/nll", "train/mean_p")),
        "val_curve": curve(folder / "metrics.csv", ("val/nll", "val/mean_p")),
    }


def run(options: argparse.Namespace) -> Path:
    """Run both objectives and write one result."""
    torch.set_num_threads(options.threads)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(options.runs_dir or folder)
        for objective in ("NLL", "NegP"):
            found[objective] = fit(objective, options, runs)
    arguments = {k: v for k, v in vars(options).items() if k not in ("runs_dir", "config")}
    settings = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    settings["data"]["train"]["init_args"].pop("path")
    path = harness.write_result("gsm8k", arguments, settings=settings, runs=found)
    rows = []
    for objective, facts in found.items():
        before, after = facts["val_before"], facts["val_after"]
        rows.append(
            {
                "objective": objective,
                "val/nll before": before["val/nll"],
                "after": after["val/nll"],
                "below unigram": facts["nats_below_unigram"],
                "val/mean_p before": before["val/mean_p"],
                "after ": after["val/mean_p"],
                "val/accuracy": after["val/accuracy"],
            }
        )
    print(harness.table(rows))
    print(f"\nunigram entropy of the training answers: {found['NLL']['unigram_entropy']:.3f} nats\n{path}")
    return path


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options; other flags are passed to the command lines of both runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gsm8k", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", required=True, help="GSM8K's training rows, with columns question and answer")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--config", default=str(CONFIG), help="the settings; by default gsm8k.yaml in this folder")
    parser.add_argument("--runs_dir", help="keep the run folders here; by default they are removed")
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    options, options.flags = parser.parse_known_args(args)
    return options


if __name__ == "__main__":
    run(parse())
