"""Two processes measure the same capability as one, under every strategy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import tiny
from tests.cli.test_fit import config
from tests.crash.server import Server

pytestmark = pytest.mark.slow

MODEL = {"class_path": "RandomCausalLM", "init_args": {"config": {**tiny.LLAMA, "initializer_range": 0.3}}}


@pytest.fixture(scope="module")
def ask(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("capability")
    path = config(folder, model__model=MODEL, data__batch_size=3)
    tiny.write_rows(folder / "train.jsonl", 25)

    def measure(name: str, *flags: str) -> dict[str, Any]:
        run = server.run("capability", "--config", path, "--name", name, *flags, cwd=folder)
        assert run.status == 0, run.output[-6000:]
        return json.loads((folder / "runs" / name / "capability.json").read_text())

    return measure


@pytest.fixture(scope="module")
def single(ask: Any) -> dict[str, Any]:
    return ask("single")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed_stage_1", "deepspeed_stage_3"])
def test_two_processes_measure_the_same_capability_as_one(ask: Any, single: dict[str, Any], strategy: str) -> None:
    if strategy.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    two = ask(strategy, "--trainer.strategy", strategy, "--trainer.devices=2")
    assert (single["world_size"], two["world_size"]) == (1, 2)
    assert (two["rows"], two["tokens"]) == (single["rows"], single["tokens"]) == (25, two["tokens"])
    for name in (
        "mean_prob",
        "nll",
        "accuracy",
        "entropy",
        "confidence",
        "ignorant",
        "contradicted",
        "share_above_0.55",
    ):
        assert two[name] == pytest.approx(single[name], rel=1e-5), name
    assert two["permilles"] == pytest.approx(single["permilles"], abs=1e-3)
    for name in ("by_position", "by_tenth"):
        for ours, expected in zip(two[name], single[name], strict=True):
            assert ours == pytest.approx(expected, rel=1e-5), name
    assert two["noise"]["contradicted_rows"] == single["noise"]["contradicted_rows"]
    for ours, expected in zip(two["noise"]["rows"], single["noise"]["rows"], strict=True):
        assert [ours[name] for name in ("row", "label", "model")] == [
            expected[name] for name in ("row", "label", "model")
        ]
    for ours, expected in zip(two["by_example"]["lowest"], single["by_example"]["lowest"], strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)


def test_two_processes_measure_the_same_sample_and_stream_as_one(ask: Any) -> None:
    for name, flags in (("sample", []), ("stream", ["--data.streaming=true"])):
        one = ask(f"{name}-one", "--sample=13", *flags)
        two = ask(f"{name}-two", "--sample=13", *flags, "--trainer.strategy=ddp", "--trainer.devices=2")
        assert two["rows"] == one["rows"] == 13
        assert two["mean_prob"] == pytest.approx(one["mean_prob"], rel=1e-6)
        assert two["by_example"]["lowest"][0]["row"] == one["by_example"]["lowest"][0]["row"]
