"""The share of wrong rows that `capability` estimates before training, against the share that was planted.

    python -m benchmarks.noise
    python -m benchmarks.noise --model SmolLM2-135M-Instruct --train gsm8k/train.jsonl

Rows are spoiled in three ways: with another row's answer, with a refusal, and with a slip that the rest of the answer
follows. 0, 10, 30 and 60 % of the rows are spoiled. By default the models are Llamas of 90,000 weights that run a
state machine over twelve digits, s[i] = (s[i-1] + d[i]) mod 10. They differ in how long they have been trained:

    weak      knows that an answer has twelve digits
    middle    trained until mean p is .5
    strong    trained until mean p is .8
    misled    sure of a different table: it is contradicted by every row

`--model FOLDER` measures a real model at what it knows well (copy a sentence), in part (sums in words, and the rows of
`--train`) and not at all (translate into an invented language). Statistics of a row do not depend on the other rows, so
each row is measured once in each version, and the cells are composed from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import harness, noise_rows
from benchmarks.noise_rows import CLEAN, KINDS, Row
from lit_probsft import InstructionDataModule, ProbSFTModule, RandomCausalLM, objective_loss
from lit_probsft.analysis.audit import Audit
from lit_probsft.analysis.noise import RowStatistics, estimate_noise
from lit_probsft.cli.probe import Probe
from lit_probsft.data import ByteTokenizer, Rows
from lit_probsft.head.checks import IGNORE_INDEX
from lit_probsft.objectives import NLL

SHARES = (0.0, 0.1, 0.3, 0.6)

# --- measuring


def row_statistics(model: Any, tokenizer: Any, rows: Sequence[Row], plain_text: bool) -> RowStatistics:
    """Statistics of each row's answer under the model, measured as `capability` does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in rows), encoding="utf-8")
        data = InstructionDataModule(
            train=Rows(str(file), prompt="prompt", response="answer"),
            tokenizer=tokenizer,
            format="plain" if plain_text else "chat",
            batch_size=16,
            cache_dir=folder,
        )
        probe = Probe(ProbSFTModule(model), data)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        L.Trainer(accelerator="cpu", devices=1, use_distributed_sampler=False, **quiet).validate(probe, verbose=False)
        order = np.argsort(probe.documents.rows)
        measured = Audit(probe.sums, probe.documents, tokenizer.decode).per_row
    return RowStatistics(**{field.name: measured[field.name][order] for field in dataclasses.fields(RowStatistics)})


def choose(spoiled: NDArray[np.bool_], wrong: RowStatistics, right: RowStatistics) -> RowStatistics:
    """The statistics of rows, some of them spoiled."""
    return RowStatistics(**{name: np.where(spoiled, vars(wrong)[name], vars(right)[name]) for name in vars(right)})


def detection(scores: NDArray[np.float64], spoiled: NDArray[np.bool_]) -> dict[str, float | None]:
    """How well the scores find the spoiled rows.

    `auc`: area under the ROC curve; `precision`: share of spoiled rows among as many with the largest scores.
    """
    if not spoiled.any():
        return {"auc": None, "precision": None}
    wrong, right = scores[spoiled][:, None], scores[~spoiled]
    first = np.argsort(-scores, kind="stable")[: spoiled.sum()]
    return {
        "auc": harness.significant(float((wrong > right).mean() + (wrong == right).mean() / 2), 3),
        "precision": harness.significant(float(spoiled[first].mean()), 3),
    }


def cells(measured: Mapping[str, RowStatistics], seed: int) -> Iterator[dict[str, Any]]:
    """The estimate for every kind and share, and what is true. Without spoiled rows all kinds are the same."""
    clean = measured[CLEAN]
    for kind in KINDS:
        for share in SHARES[kind != KINDS[0] :]:
            spoiled = np.zeros(len(clean.tokens), dtype=bool)
            count = round(share * len(spoiled))
            spoiled[np.random.default_rng(seed).permutation(len(spoiled))[:count]] = True
            estimate = estimate_noise(choose(spoiled, measured[kind], clean))
            yield {
                "kind": kind if count else CLEAN,
                "truth": count / len(spoiled),
                "estimate": harness.significant(estimate.share, 3),
                "interval": None if estimate.interval is None else harness.rounded(estimate.interval),
                **detection(estimate.scores, spoiled),
            }


def describe(rows: RowStatistics) -> dict[str, float]:
    """Means over the tokens of the rows."""
    names = ("mean_prob", "nll", "entropy", "confidence", "ignorant", "contradicted")
    weights = rows.tokens / rows.tokens.sum()
    return {name: harness.significant(float(weights @ vars(rows)[name]), 3) for name in names}


# --- tiny models

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "tie_word_embeddings": True,
}


def tiny_models(seed: int) -> Iterator[tuple[str, Any]]:
    """Train models; yields a level and the model, which the next step trains further."""
    rng = random.Random(seed)
    offsets = [[rng.randrange(1, 10) for _ in range(10)] for _ in range(10)]

    def row(answer: Callable[[Sequence[int], Mapping[int, int]], str]) -> Row:
        if rng.random() < 0.05:  # the model knows refusals, as answers to other questions
            return noise_rows.prompt_of(noise_rows.draw(rng), "?"), noise_rows.REFUSAL
        slips = {position: rng.randrange(1, 10) for position in range(noise_rows.DIGITS) if rng.random() < 0.03}
        digits = noise_rows.draw(rng)
        return noise_rows.prompt_of(digits), answer(digits, slips)

    def train(answer: Callable[..., str], peak: float, steps: int, until: float | None = None) -> None:
        average = 0.0
        for step in range(steps):
            decay = 1.0 if until else 0.5 + 0.5 * math.cos(math.pi * step / steps)
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 10) * decay
            average += 0.2 * (_step(model, optimizer, [row(answer) for _ in range(32)]) - average)
            if until and average > until:
                return

    def misled(digits: Sequence[int], slips: Mapping[int, int]) -> str:
        return noise_rows.machine(digits, slips, offsets)

    def weak(digits: Sequence[int], slips: Mapping[int, int]) -> str:
        return noise_rows.machine(noise_rows.draw(rng), slips)

    for answer in (misled, weak):
        model = RandomCausalLM(LLAMA, seed=seed).load(ByteTokenizer().load(list), torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        train(answer, 4e-3, 250)
        yield answer.__name__, model
    for level, mean_prob in (("middle", 0.5), ("strong", 0.8)):
        train(noise_rows.machine, 2e-3, 800, until=mean_prob)
        yield level, model


def _step(model: Any, optimizer: torch.optim.Optimizer, rows: Sequence[Row]) -> float:
    """Take an optimizer step on rows of bytes. Returns mean p of the answers' tokens before it."""
    tokens = [[*prompt.encode(), *answer.encode(), model.config.eos_token_id] for prompt, answer in rows]
    length = max(map(len, tokens))
    ids = torch.full((len(rows), length), model.config.pad_token_id)
    labels = torch.full((len(rows), length), IGNORE_INDEX)
    for index, ((prompt, _), row) in enumerate(zip(rows, tokens, strict=True)):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, len(prompt) : len(row)] = ids[index, len(prompt) : len(row)]
    hidden = model.model(ids).last_hidden_state[:, :-1].flatten(0, 1)
    labels = labels[:, 1:].flatten()
    output = objective_loss(hidden, model.lm_head.weight, labels, NLL())
    output.loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(output.log_probs[labels != IGNORE_INDEX].exp().mean())


# --- the whole


def measurements(options: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, RowStatistics]]]:
    """A level, a seed, and the statistics of all versions of its rows."""
    if options.model is None:
        tokenizer = ByteTokenizer().load(list)
        for seed in range(options.seeds):
            rows = noise_rows.machine_rows(options.rows, random.Random(1000 + seed))
            for level, model in tiny_models(seed):
                yield level, seed, {k: row_statistics(model, tokenizer, found, True) for k, found in rows.items()}
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    rng = random.Random(0)
    tasks = {
        "strong: copy": noise_rows.copies,
        "middle: sums": noise_rows.sums,
        "weak: invented language": noise_rows.invented,
    }
    drawn = {level: task(options.rows, rng) for level, task in tasks.items()}
    if options.train:
        lines = Path(options.train).read_text(encoding="utf-8").splitlines()
        chosen = [json.loads(line) for line in rng.sample(lines, options.rows)]
        drawn["middle: rows of --train"] = [(row[options.prompt], row[options.response]) for row in chosen]
    for level, clean in drawn.items():
        found = noise_rows.texts(clean, rng)
        yield level, 0, {kind: row_statistics(model, tokenizer, rows, False) for kind, rows in found.items()}


def summarize(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How good the estimates of some cells are; cells without an estimate count only in the first and last number."""
    known = [cell for cell in found if math.isfinite(cell["estimate"])]
    errors = [abs(cell["estimate"] - cell["truth"]) for cell in known]
    within = [cell for cell in found if cell["interval"]]
    held = [cell["interval"][0] <= cell["truth"] <= cell["interval"][1] for cell in within]
    return {
        "cells": len(found),
        "estimated": len(known),
        "mean error": harness.significant(float(np.mean(errors)), 2) if known else None,
        "within .05": sum(error <= 0.05 + 1e-9 for error in errors),
        "truth in the interval": sum(held),
    }


def run(options: argparse.Namespace) -> Path:
    """Measure everything and write the result."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    levels: dict[str, list[dict[str, float]]] = {}
    found: list[dict[str, Any]] = []
    for level, seed, measured in measurements(options):
        levels.setdefault(level, []).append(describe(measured[CLEAN]))
        found += [{"level": level, "seed": seed, **cell} for cell in cells(measured, seed)]
        harness.say(f"seed {seed}, {level}: mean p {levels[level][-1]['mean_prob']:.2f}")
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for cell in found:
        groups.setdefault((cell["level"], cell["kind"], cell["truth"]), []).append(cell)
    rows = [
        {
            "level": level,
            "kind": kind,
            "truth": truth,
            "estimates": " ".join(_number(cell["estimate"]) for cell in group),
            "intervals": " ".join(
                "-" if c["interval"] is None else "-".join(map(_number, c["interval"])) for c in group
            ),
            "auc": " ".join(_number(cell["auc"]) for cell in group),
            "precision": " ".join(_number(cell["precision"]) for cell in group),
        }
        for (level, kind, truth), group in groups.items()
    ]
    summary = {
        f"{level}, {kind}": summarize([cell for cell in found if (cell["level"], cell["kind"]) == (level, kind)])
        for level in levels
        for kind in (CLEAN, *KINDS)
    }
    arguments = {key: value for key, value in vars(options).items() if value is not None}
    if options.model:
        arguments["model"] = Path(options.model).name
    label = "" if options.model is None else arguments["model"].lower()
    path = harness.write_result("noise", arguments, label=label, levels=levels, summary=summary, cells=found)
    print(harness.table(rows))
    print(harness.table([{"rows": name, **values} for name, values in summary.items()]))
    print(path)
    return path


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, help="rows of a cell; by default 200, with --model 100")
    parser.add_argument("--seeds", type=int, default=3, help="number of times that the tiny models are trained")
    parser.add_argument("--model", help="folder of a real model, instead of tiny ones")
    parser.add_argument("--train", help="with --model, a jsonl file of further rows")
    parser.add_argument("--prompt", default="question")
    parser.add_argument("--response", default="answer")
    parser.add_argument("--results", help="folder for the JSON; by default benchmarks/results")
    options = parser.parse_args(args)
    options.rows = options.rows or (200 if options.model is None else 100)
    return options


if __name__ == "__main__":
    run(parse())
