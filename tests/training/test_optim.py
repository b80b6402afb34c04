"""Parameter groups and schedules."""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError
from lit_probsft.training.checkpoints import CheckpointOptions, Checkpoints
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.optim import Schedule, parameter_groups
from tests import tiny
from tests.cli.test_fit import config

schedules = st.builds(
    Schedule,
    decay=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 50).map(float)),
    final=st.floats(0, 1),
    decay_share=st.floats(0.01, 1),
)


@given(schedule=schedules, total=st.integers(1, 300))
def test_a_schedule_rises_then_never_rises_again_and_stays_in_its_range(schedule: Schedule, total: int) -> None:
    factors = [schedule.factor(step, total) for step in range(total)]
    peak = factors.index(max(factors))
    assert all(0 <= factor <= 1 for factor in factors)
    assert all(a <= b for a, b in itertools.pairwise(factors[: peak + 1]))
    assert all(a >= b for a, b in itertools.pairwise(factors[peak:]))
    assert factors[0] > 0


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd"])
def test_a_decay_ends_at_its_final_factor(decay: str) -> None:
    schedule = Schedule(decay, warmup=0.1, final=0.05)
    assert schedule.factor(10, 100) == 1
    assert schedule.factor(100, 100) == pytest.approx(0.05)


def test_warm_up_is_a_share_below_one_and_steps_above() -> None:
    steps = 20
    for warmup in (0.1, 20.0):
        schedule = Schedule("constant", warmup=warmup)
        factors = [schedule.factor(step, 200) for step in range(200)]
        assert factors[steps - 1] == 1
        assert factors[0] == pytest.approx(1 / steps)
        assert all(factor == 1 for factor in factors[steps:])


def test_warm_up_stable_decay_is_flat_between() -> None:
    schedule = Schedule("wsd", warmup=0.1, decay_share=0.2)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert set(factors[10:81]) == {1.0}
    assert factors[90] == pytest.approx(0.5)


def test_the_scheduler_moves_by_optimizer_step() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    scheduler = Schedule("linear", warmup=0).attach(optimizer, 4)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_a_warm_up_longer_than_the_run_is_warned_of() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.warns(UserWarning, match="warmup: 8 steps are more than the 4 of the run, .* rises to 0.5 of"):
        Schedule(warmup=8).attach(optimizer, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Schedule(warmup=4).attach(optimizer, 4)


def test_norms_and_biases_are_not_decayed_and_every_parameter_is_in_a_group() -> None:
    model = tiny.model(attention_bias=True, tie_word_embeddings=True)
    model.get_input_embeddings().weight.requires_grad_(True)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    groups = parameter_groups(model)
    undecayed = {id(p) for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in undecayed}
    assert names == {name for name, _ in model.named_parameters() if "norm" in name or name.endswith("bias")}
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "fields", [{"decay": "cosin"}, {"warmup": -1}, {"final": 1.5}, {"decay_share": 0}, {"warmup": float("nan")}]
)
def test_a_value_out_of_range_is_refused_by_name(fields: dict) -> None:
    with pytest.raises(UserError, match=f"schedule.{next(iter(fields))}"):
        Schedule(**fields)


EIGHT = ["--model.optimizer", "AdamW8bit", "--model.optimizer.lr", "0.01"]


def test_8_bit_moments_resume_to_the_bit(tmp_path: Path) -> None:
    optim = pytest.importorskip("bitsandbytes.optim")

    def fit(**options: Any) -> ProbSFTModule:
        module = ProbSFTModule(tiny.source(), optimizer=lambda p: optim.AdamW8bit(p, lr=1e-2, weight_decay=0.5))
        trainer = tiny.trainer(**{key: options[key] for key in options if key != "ckpt_path"})
        trainer.fit(module, datamodule=tiny.data(rows), ckpt_path=options.get("ckpt_path"))
        return module

    rows = tiny.write_rows(tmp_path / "rows.jsonl")
    saved = Checkpoints(tmp_path, CheckpointOptions(save_every=1, keep_last=9))
    whole = fit(callbacks=[saved], enable_checkpointing=True)
    optimizer = whole.trainer.optimizers[0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0]
    large = whole.model.get_input_embeddings().weight  # smaller ones keep moments of 32 bits
    assert optimizer.state[large]["state1"].dtype == torch.uint8
    resumed = fit(ckpt_path=tmp_path / "step-00000002.ckpt")
    assert whole.trainer.global_step == resumed.trainer.global_step == 3
    for name, value in tiny.weights(resumed).items():
        assert torch.equal(value, tiny.weights(whole)[name]), name


def test_8_bit_moments_are_refused_with_fsdp2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        main(["fit", "--config", str(config(tmp_path)), *EIGHT, "--trainer.strategy", "fsdp2"])
    assert str(caught.value) == (
        "model.optimizer: expected an optimizer that supports fsdp2, such as torch.optim.AdamW, got "
        "AdamW8bit of bitsandbytes, which supports ddp and DeepSpeed"
    )


@pytest.mark.parametrize("name", ["AdamW8bit", "bitsandbytes.optim.AdamW8bit"])
def test_8_bits_without_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError) as caught:
        main(["fit", "--config", str(config(tmp_path, model__optimizer={"class_path": name}))])
    assert str(caught.value) == (
        f'model.optimizer: {name} needs bitsandbytes, which is not installed (pip install "lit_probsft[bitsandbytes]")'
    )
