"""Under every strategy, two processes take the same steps as one process with the whole batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.objectives import (
    ASFT,
    EAFT,
    NLL,
    Cayley,
    LabelSmoothing,
    NegP,
    Objective,
    QuantileThreshold,
    RunningPower,
    Threshold,
)
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule
from tests import tiny
from tests.members import ALL
from tests.parallel.worker import Fit, do_jobs

pytestmark = pytest.mark.slow

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
CLIP = 0.03
"""Below every objective's gradient norm at some step, so that clipping takes effect."""

IN_FLOAT = [NLL(), NegP(), LabelSmoothing(0.1), EAFT(), Cayley(), RunningPower(), QuantileThreshold()]
"""Objectives that are also trained in single precision, the only one that DeepSpeed supports."""


def distributed() -> list[Objective]:
    """The objectives that exercise distribution: one for each set of statistics, with and without an interval.

    Two processes differ from one in the statistics they exchange, never in the loss of a token, so that objectives with
    the same needs test the same code.
    """
    first: dict[Any, Objective] = {}
    for objective in ALL:
        first.setdefault((objective.needs, objective.interval == (0.0, 1.0)), objective)
    return list(dict.fromkeys([*first.values(), *IN_FLOAT]))


@dataclass(frozen=True)
class Case:
    """A fit on two processes and its reference: by default, one process with the whole batch."""

    fit: Fit
    alone: Fit | None = None
    norm: float = 1.0
    """The gradient norm of the reference, divided by that of two processes."""

    @property
    def reference(self) -> Fit:
        return self.alone or replace(self.fit, batch_size=8, accumulate=1)


def cases_of(strategy: str, base: Fit) -> dict[str, Case]:
    """The fits under a strategy, by name."""
    exact = strategy in ("ddp", "fsdp2")  # DeepSpeed does not support double precision
    cases = {}
    for index, objective in enumerate(distributed()):
        # One micro-batch per step and rank halves the messages. The cases below accumulate.
        single = replace(base, objective=ALL.index(objective), clip=CLIP, dtype="float32", batch_size=4, accumulate=1)
        if objective in IN_FLOAT:
            cases[f"{objective!r} single"] = Case(single)
        if exact:
            double = replace(single, dtype="float64", optimizer=("sgd", "adamw")[index % 2])
            cases[f"{objective!r} double"] = Case(double)
    if strategy == "zero1":
        return cases

    short = replace(base, epochs=2, dtype="float64" if exact else "float32")
    papers = replace(short, normalize="micro_batch", clip=None)
    packed = replace(short, model="gpt2", packing=128, batch_size=1)
    cases |= {
        "llama": Case(replace(short, model="llama")),
        "tied": Case(replace(short, model="tied")),
        "gpt2": Case(replace(short, model="gpt2")),
        "gemma2": Case(replace(short, model="gemma2")),
        "pretrained": Case(short),
        "unclipped": Case(replace(short, clip=None)),
        "recompute": Case(replace(short, recompute=True)),
        "lora": Case(replace(short, lora="plain", recompute=True)),
        "dora": Case(replace(short, lora="dora", recompute=True, clip=0.1)),
        "dora gpt2": Case(replace(short, model="gpt2", clip=0.1, lora="dora")),
        "head": Case(replace(short, clip=0.1, lora="head")),
        "dora head": Case(replace(short, clip=0.1, lora="dora head")),
        "whole": Case(replace(short, lora="whole", recompute=True, clip=0.1)),
        "whole tied": Case(replace(short, clip=0.1, model="tied", lora="whole")),
        "more accumulation": Case(replace(short, batch_size=1, accumulate=4)),
        "sequence": Case(replace(short, normalize="sequence")),
        "kept": Case(replace(short, objective=ALL.index(Threshold(NLL(), 0.2, 1.0)), normalize="kept")),
        # The mean over two ranks halves the gradient of the same four micro-batches.
        "papers": Case(replace(papers, optimizer="sgd at twice the rate"), replace(papers, accumulate=4), norm=2.0),
        "packed": Case(packed, replace(packed, batch_size=4, accumulate=1)),
        "packed, sequence": Case(
            replace(packed, normalize="sequence"),
            replace(packed, normalize="sequence", batch_size=4, accumulate=1),
        ),
        "broken": Case(replace(short, broken=2)),
        # On random weights its gradient is small.
        "anchored": Case(replace(short, objective=ALL.index(ASFT()), clip=0.3)),
        "anchored, whole": Case(replace(short, objective=ALL.index(ASFT()), lora="whole", clip=0.3)),
        "anchored, lora": Case(replace(short, objective=ALL.index(ASFT()), lora="plain", recompute=True)),
    }
    if strategy in ("ddp", "zero2") and find_spec("bitsandbytes"):
        cases["nf4"] = Case(replace(short, dtype="float32", quantization="nf4", lora="dora", clip=0.1))
    if strategy == "fsdp2":
        single = replace(short, dtype="float32")
        cases["bf16"] = Case(replace(single, precision="bf16-mixed"), replace(single, batch_size=8, accumulate=1))
        cases["compiled"] = Case(replace(single, compile=True), replace(single, batch_size=8, accumulate=1))
    return cases


class Launch:
    """All fits of a strategy, in one launch."""

    def __init__(self, strategy: str, base: Fit, out: Path) -> None:
        self.strategy, self.out = strategy, out
        self.cases = cases_of(strategy, base)
        self._files = {name: f"{index:03}" for index, name in enumerate(self.cases)}
        jobs: dict[str, Any] = {self._files[name]: (strategy, case.fit) for name, case in self.cases.items()}
        do_jobs(jobs, out, timeout=600)

    def ranks(self, name: str) -> list[dict[str, Any]]:
        """The results of a fit, one per rank."""
        return [torch.load(self.out / f"{self._files[name]}.{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Twenty steps in five epochs; the last window of an epoch has a single row for four micro-batches.

    The model has been trained on the rows before, so that some tokens are likely and fall outside intervals of p.
    """
    folder = tmp_path_factory.mktemp("equal")
    rows = tiny.write_rows(folder / "rows.jsonl", 25)
    module = ProbSFTModule(
        tiny.source(), NLL(), lambda p: torch.optim.AdamW(p, lr=1e-2), schedule=Schedule("constant", warmup=0)
    )
    tiny.trainer(max_epochs=20).fit(module, datamodule=tiny.data(rows))
    module.model.save_pretrained(folder / "trained")
    return Fit(str(rows), str(folder / "trained"))


@pytest.fixture(scope="module")
def launches(base: Fit, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Launch]:
    """The launch of each strategy, started on first use."""

    @functools.cache
    def launched(strategy: str) -> Launch:
        if strategy.startswith("zero"):
            pytest.importorskip("deepspeed")
        return Launch(strategy, base, tmp_path_factory.mktemp(strategy))

    return launched


@pytest.fixture
def launch(strategy: str, launches: Callable[[str], Launch]) -> Launch:
    return launches(strategy)


@functools.cache
def alone(fit: Fit) -> dict[str, Any]:
    return fit.run()


STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
SPECIAL = {
    "kept": ("zero2", "zero3"),
    "anchored": ("zero3",),
    "anchored, lora": ("zero3",),
    "anchored, whole": ("zero3",),
    "dora": ("zero3",),
    "dora gpt2": ("zero3",),
    "dora head": ("zero3",),
    "bf16": ("fsdp2",),
}
"""Cases that have their own tests, with their strategies."""


def named(cases: Callable[[str], list[str]]) -> Any:
    """Parametrize a test by strategy and by the name of a fit under it."""
    return pytest.mark.parametrize(
        ("strategy", "name"), [(strategy, name) for strategy in STRATEGIES for name in cases(strategy)]
    )


@named(lambda s: [name for name in cases_of(s, Fit("", "")) if s not in SPECIAL.get(name, ())])
def test_two_processes_take_the_same_steps_as_one(launch: Launch, name: str) -> None:
    case = launch.cases[name]
    tolerance = TOLERANCE[case.fit.dtype]
    # Norms and attention compute in fp32, and the gradient of a single row does not average out rounding errors.
    logged = max(10 * tolerance, 1e-7)
    one, (first, second) = alone(case.reference), launch.ranks(name)
    assert one["moved"] > 100 * tolerance
    assert first["weights"].keys() == second["weights"].keys() == one["weights"].keys()
    for weight, value in one["weights"].items():
        torch.testing.assert_close(
            first["weights"][weight], value, rtol=tolerance, atol=tolerance, msg=lambda m, w=weight: f"{w}: {m}"
        )
        assert torch.equal(first["weights"][weight], second["weights"][weight]), weight

    assert len(first["steps"]) == len(one["steps"]) == 4 * case.fit.epochs
    for step, (ours, expected) in enumerate(zip(first["steps"], one["steps"], strict=True)):
        for metric in ("train/nll", "train/mean_p", "train/inside", "train/accuracy"):
            assert ours[metric] == pytest.approx(expected[metric], rel=logged), (step, metric)
        norm = ours["train/grad_norm"] * case.norm
        if math.isfinite(expected["train/grad_norm"]):
            assert norm == pytest.approx(expected["train/grad_norm"], rel=logged), step
        else:
            assert not math.isfinite(norm), step
    norms = [step["train/grad_norm"] for step in one["steps"]]
    assert case.fit.clip is None or max(norms) > case.fit.clip
    if case.fit.normalize == "kept":
        assert 0 < one["steps"][0]["train/inside"] < 1
    assert (first["graphs"] > 0) == case.fit.compile


@named(lambda s: ["broken"] if s != "zero1" else [])
def test_a_step_with_an_infinite_loss_on_one_rank_is_skipped_on_all(launch: Launch, name: str) -> None:
    assert [rank["skipped"] for rank in launch.ranks(name)] == [1, 1]
    for rank in launch.ranks(name):
        assert all(value.isfinite().all() for value in rank["weights"].values())
        assert [step["train/skipped_steps"] for step in rank["steps"]] == [0, 0, 1, 1, 1, 1, 1, 1]


@named(lambda s: ["kept"] if s in SPECIAL["kept"] else [])
def test_deepspeed_refuses_to_normalize_by_kept_tokens(launch: Launch, name: str) -> None:
    for rank in launch.ranks(name):
        assert "model.normalize: kept is not possible with DeepSpeed" in rank["refused"]


@named(lambda s: ["anchored", "anchored, lora", "anchored, whole"] if s == "zero3" else [])
def test_zero_3_refuses_a_reference_model(launch: Launch, name: str) -> None:
    for rank in launch.ranks(name):
        assert "model.objective: ASFT needs reference_logits of a second model, which ZeRO-3" in rank["refused"]


@named(lambda s: ["dora", "dora head"] if s == "zero3" else [])
def test_zero_3_refuses_dora(launch: Launch, name: str) -> None:
    for rank in launch.ranks(name):
        assert rank["refused"] == (
            "model.lora.dora: not possible with ZeRO-3, which empties the matrices whose rows it measures; use fsdp2, "
            "or stage 1 or 2"
        )


@named(lambda s: ["bf16"] if s == "fsdp2" else [])
def test_bf16_mixed_computes_in_bf16_with_weights_in_fp32(launch: Launch, name: str) -> None:
    one, (first, _) = alone(launch.cases[name].reference), launch.ranks(name)
    assert first["dtypes"] == ["torch.float32"]
    losses, expected = ([step["train/loss"] for step in result["steps"]] for result in (first, one))
    assert losses[0] != pytest.approx(expected[0], rel=1e-6)
    assert losses == pytest.approx(expected, rel=2e-2)


def test_compiled_layers_take_the_same_steps(base: Fit) -> None:
    plain = replace(base, dtype="float32", epochs=2, batch_size=8, accumulate=1)
    compiled = replace(plain, compile=True).run()
    assert compiled["graphs"] > 0
    for ours, expected in zip(compiled["steps"], alone(plain)["steps"], strict=True):
        assert ours["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-5)
