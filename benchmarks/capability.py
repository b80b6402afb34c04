"""The cost of measuring a model before training, compared with an epoch of training on the same rows.

    python -m benchmarks.capability --train train.jsonl

The model is a Qwen2 with 19.7M random weights, as in `benchmarks.step`. A block of the probe is
`python -m lit_probsft capability` without the start of the process: all statistics, in micro-batches sorted by length.
A block of training is `Trainer.fit` with everything that the module does in a step. Both blocks have the same number of
rows of the same file and take turns. The ratio is that of seconds per token within a round, without padding. With
`--rows` a block is part of an epoch: for the probe, micro-batches of all lengths; for training, the next steps of a
shuffled epoch.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks import harness
from benchmarks.step import MODELS, POOL, counts, lightning_loop, make_data
from lit_probsft import RandomCausalLM
from lit_probsft.cli.probe import Probe
from lit_probsft.training.module import ProbSFTModule

PROBE, TRAINING = "probe", "training, Trainer.fit"


class _GateCallback(L.Callback):
    """Reports each micro-batch of the probe to the gate, as training reports an optimizer step."""

    def __init__(self, gate: harness.Gate) -> None:
        self.gate, self.opened = gate, False

    def on_validation_batch_start(self, *args: Any) -> None:
        if not self.opened:
            self.gate.open()
            self.opened = True

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.gate.step(counts(batch))


def probe_loop(gate: harness.Gate, options: argparse.Namespace) -> None:
    """Run the probe over all rows repeatedly, as the command runs it."""
    torch.set_num_threads(options.threads)
    source = RandomCausalLM({"model_type": "qwen2", "vocab_size": options.vocab, **options.model})
    callback = _GateCallback(gate)
    while True:
        probe = Probe(ProbSFTModule(source), make_data(options, POOL))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(accelerator="cpu", devices=1, use_distributed_sampler=False, callbacks=[callback], **quiet)
        trainer.validate(probe, verbose=False)


def run(options: argparse.Namespace) -> Path:
    """Time the blocks and write the result."""
    torch.set_num_threads(options.threads)
    data = make_data(options, POOL)  # fills the cache so that no loop tokenizes
    report = {name: data.report["train"][name] for name in ("kept", "tokens", "supervised_tokens", "max_length")}
    steps = -(-(options.rows or report["kept"]) // options.sequences)
    loops = [
        harness.Loop(PROBE, probe_loop, (options,)),
        harness.Loop(TRAINING, lightning_loop, (options, POOL)),
    ]
    blocks = harness.time_loops(loops, rounds=options.rounds, steps=steps, report=harness.say)
    found: dict[str, Any] = {}
    for name in ("seconds", "cpu_seconds"):
        per_token = {loop: [block[name] / block["tokens"] for block in rounds] for loop, rounds in blocks.items()}
        found[f"{name} per token, ratio to training"] = harness.ratios(per_token, TRAINING)[PROBE]
        found[f"{name} of an epoch's tokens"] = {
            loop: harness.spread(value * report["tokens"] for value in values) for loop, values in per_token.items()
        }
    found["tokens of a block"] = {loop: [block["tokens"] for block in rounds] for loop, rounds in blocks.items()}
    arguments = {k: v for k, v in vars(options).items() if k not in ("cache", "model")}
    path = harness.write_result("capability", arguments, data=report, steps_of_a_block=steps, **found)
    print(harness.table([{"what": key, "value": str(value)} for key, value in found.items()]))
    print(path)
    return path


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options and add the ones that `benchmarks.step` reads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capability", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", required=True, help="rows, a jsonl file")
    parser.add_argument("--prompt", default="question")
    parser.add_argument("--response", default="answer")
    parser.add_argument("--rows", type=int, help="rows of a block; by default all of the file, an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=16, help="rows of a step, and of a micro-batch of the probe")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    options = parser.parse_args(args)
    options.device, options.vocab, options.model = "cpu", 32768, MODELS["cpu"]
    options.cache = None
    return options


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        chosen = parse()
        chosen.cache = folder
        run(chosen)
