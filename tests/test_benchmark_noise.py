"""The rows of the benchmark of noise are spoiled as it says, and its figures are those of the planted rows."""

import json
import random

import numpy as np
import pytest
import torch

from benchmarks import noise, noise_rows
from lit_probsft import RandomCausalLM
from lit_probsft.analysis.noise import RowStatistics
from lit_probsft.data import ByteTokenizer, tokenize_conversation


def test_a_slip_of_the_machine_shifts_all_later_states():
    digits = [3, 9, 0, 5]
    assert noise_rows.machine(digits, {}) == "3227"
    assert noise_rows.machine(digits, {1: 4}) == "3661"


def test_a_slip_in_a_text_is_followed_by_the_rest_of_it():
    slipped = noise_rows.slip("2 and 3 make 5, so 5 it is", ["and"], random.Random(0))
    before, after = ["2", "and", "3", "make", "5,", "so", "5", "it", "is"], slipped.split()
    changed = {(a.strip(","), b.strip(",")) for a, b in zip(before, after, strict=True) if a != b}
    assert len(changed) == 1
    assert all(number.isdecimal() for pair in changed for number in pair)
    assert noise_rows.slip("so it is", ["it", "no"], random.Random(0)).count("no") == 1


def test_every_kind_has_the_same_prompts_and_other_answers():
    rows = noise_rows.texts(noise_rows.sums(8, random.Random(0)), random.Random(1))
    prompts = [prompt for prompt, _ in rows["clean"]]
    for kind in noise_rows.KINDS:
        assert [prompt for prompt, _ in rows[kind]] == prompts
        assert all(spoiled[1] != clean[1] for spoiled, clean in zip(rows[kind], rows["clean"], strict=True))


def test_tiny_models_are_trained_on_the_tokens_that_are_measured(monkeypatch):
    row, seen = ("+123=", "136"), {}
    model = RandomCausalLM(noise.LLAMA, seed=0).load(ByteTokenizer().load(list), torch.float32)

    def loss(hidden, weight, labels, objective):
        seen["labels"] = labels.tolist()
        return original(hidden, weight, labels, objective)

    original = noise.objective_loss
    monkeypatch.setattr(noise, "objective_loss", loss)
    noise._step(model, torch.optim.SGD(model.parameters()), [row])
    messages = [{"role": "user", "content": row[0]}, {"role": "assistant", "content": row[1]}]
    expected = tokenize_conversation(ByteTokenizer().load(list), messages, plain_text=True)["labels"]
    assert seen["labels"] == expected[1:]


def test_figures_are_those_of_the_planted_rows(tmp_path, monkeypatch):
    def measure(options):
        rng, constant = np.random.default_rng(0), np.ones(options.rows)
        for level, surprise in (("strong", 3.0), ("weak", 0.0)):
            yield (
                level,
                0,
                {
                    kind: RowStatistics(
                        tokens=20 * constant,
                        mean_prob=0.5 * constant,
                        nll=1 + surprise * (kind != noise_rows.CLEAN) + rng.normal(0, 0.1, options.rows),
                        entropy=constant + rng.normal(0, 0.1, options.rows),
                        confidence=0.6 * constant,
                        ignorant=(surprise == 0) * constant,
                        contradicted=surprise * (kind != noise_rows.CLEAN) / 10 * constant,
                    )
                    for kind in (noise_rows.CLEAN, *noise_rows.KINDS)
                },
            )

    monkeypatch.setattr(noise, "measurements", measure)
    result = json.loads(noise.run(noise.parse(["--rows", "40", "--results", str(tmp_path)])).read_text())
    assert result["summary"]["strong, slip"] == {
        "cells": 3,
        "estimated": 3,
        "mean error": pytest.approx(0, abs=0.02),
        "within .05": 3,
        "truth in the interval": 3,
    }
    assert result["summary"]["weak, slip"]["estimated"] == 0
    strong = [cell for cell in result["cells"] if cell["level"] == "strong" and cell["truth"]]
    assert [cell["auc"] for cell in strong] == [1.0] * 9 == [cell["precision"] for cell in strong]
    assert {cell["truth"] for cell in result["cells"]} == {0.0, 0.1, 0.3, 0.6}


@pytest.mark.slow
def test_the_benchmark_runs_from_training_to_the_result(tmp_path):
    result = json.loads(
        noise.run(noise.parse(["--rows", "40", "--seeds", "1", "--results", str(tmp_path)])).read_text()
    )
    means = {level: found[0]["mean_prob"] for level, found in result["levels"].items()}
    assert means["misled"] < means["weak"] < 0.3 < means["middle"] < means["strong"]
    assert result["summary"]["strong, other"]["within .05"] == 3
