"""A dry run makes the largest step of a run, reports correct numbers, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.cli.commands import main
from lit_probsft.cli.trial_steps import TrialSteps
from lit_probsft.errors import UserError
from lit_probsft.training.module import ProbSFTModule
from tests import tiny
from tests.cli.test_fit import config, fit, slow


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The batches of all training steps."""
    seen: list[dict[str, Any]] = []
    step = ProbSFTModule.training_step

    def watched(self: ProbSFTModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        seen.append(batch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ProbSFTModule, "training_step", watched)
    return seen


def test_it_steps_over_the_longest_documents_and_writes_nothing(
    tmp_path: Path, batches: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, data__batch_size=4, trainer__accumulate_grad_batches=2, trainer__max_epochs=3)
    before = sorted(tmp_path.rglob("*"))
    cli = main(["fit", "--config", str(path), "--dry_run"])
    assert sorted(tmp_path.rglob("*")) == before
    store = cli.datamodule.documents("train")
    longest = sorted(store.lengths.tolist())[-8:]
    assert len(batches) == 4  # two steps of two micro-batches
    first = [int(n) for batch in batches[:2] for n in batch["attention_mask"].sum(-1)]
    assert sorted(first) == longest
    assert batches[0]["window_length"] == sum(longest)
    assert cli.trainer.global_step == 2

    found, parameters = cli.facts, sum(p.numel() for p in cli.model.model.parameters())
    expected = {
        "parameters": parameters, "trained": parameters, "documents": 24, "tokens": int(store.lengths.sum()),
        "supervised": int(store.supervised.sum()), "steps_in_epoch": 3, "steps": 9, "longest": longest[-1],
        "weights": 4 * parameters, "gradients": 4 * parameters, "tokens_per_step": store.lengths.sum() / 3,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert 8 * parameters <= found["optimizer"] < 8.1 * parameters  # Adam's moments, and a counter each
    assert found["peak"] > 50 * 2**20
    assert found["seconds"] == 9 * found["seconds_per_step"] > 0
    plan, held = cli.trial_steps.plan, 0
    for index in range(plan.num_micro_batches):
        lengths = [int(store.lengths[document]) for document in plan.micro_batch(0, index).documents]
        held += len(lengths) * max(lengths)
    assert found["padding"] == pytest.approx(1 - store.lengths.sum() / held)
    said = capsys.readouterr().out
    assert f"model:   {parameters:,} parameters, {parameters:,} trained\n" in said
    assert "steps:   3 per epoch, 9 in total; " in said
    assert "and a validation batch of the longest" in said
    assert said.endswith("run:     runs/tiny: nothing was written\n")


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("pool", [50, slow(0)])
def test_no_step_of_any_epoch_is_larger(tmp_path: Path, accumulate: int, pool: int) -> None:
    data = tiny.data(tiny.write_rows(tmp_path / "rows.jsonl", 50), batch_size=3, length_pool=pool)
    trainer = tiny.trainer(accumulate_grad_batches=accumulate)
    data.trainer = trainer
    data.setup("fit")
    steps = TrialSteps(data)

    def size(plan: Any, epoch: int, index: int) -> int:
        lengths = [int(steps.documents.lengths[document]) for document in plan.micro_batch(epoch, index).documents]
        return len(lengths) * max(lengths, default=0)

    trial = max(batch["input_ids"].numel() for batch in steps.batches[:accumulate])
    sizes = [size(data.plan, epoch, index) for epoch in range(20) for index in range(data.plan.num_micro_batches)]
    assert max(sizes) <= trial
    assert len(steps.batches) == 2 * accumulate


@pytest.mark.slow
def test_an_existing_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path)
    fit(path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")}
    capsys.readouterr()
    fit(path, "--dry_run")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*")} == before
    said = "runs/tiny exists: pass --resume or --overwrite; nothing was written"
    assert said in capsys.readouterr().out


LIMITS = [
    "--trainer.min_epochs=1",
    "--trainer.limit_train_batches=1",
    "--validate_every=1",
    "--trainer.callbacks=Timer",
]
CASES = {
    "packed": ["--data.packing=true", "--data.max_length=120", "--data.batch_size=2"],
    "stream": ["--data.streaming=true", "--data.shuffle_buffer=12", "--trainer.max_steps=5"],
    "packed stream": [
        "--data.streaming=true", "--data.packing=true", "--data.max_length=120", "--trainer.max_steps=5",
    ],
    "one step": ["--trainer.max_steps=1"],
    "no validation": ["--data.validation=null"],
    "watched": ["--data.watch", json.dumps({"other": {"class_path": "Rows", "init_args": {
        "path": "validation.jsonl", "prompt": "question", "response": "answer"}}})],
    "adapters": ["--model.lora=LoRA"],
    "fitted": ["--model.objective=QuantileThreshold", "--model.objective.keep=0.5"],
    "limits": [*LIMITS, "--early_stopping.patience=1"],
}  # fmt: skip


@pytest.mark.parametrize("name", [name if name == "packed" else slow(name) for name in CASES])
def test_it_works_with_every_kind_of_data_and_model(tmp_path: Path, batches: list[dict[str, Any]], name: str) -> None:
    cli = main(["fit", "--config", str(config(tmp_path)), "--dry_run", *CASES[name]])
    assert not (tmp_path / "runs").exists()
    found = cli.facts
    steps = {"stream": 5, "packed stream": 5, "one step": 1, "packed": found["steps_in_epoch"], "limits": 1}
    assert found["steps"] == steps.get(name, 3)
    assert cli.trial.validated == (name != "no validation")
    if "stream" in name:
        assert found["steps_in_epoch"] is None
        assert found["documents"] == (12 if name == "stream" else 24)
    if name == "packed":
        longest = max(int(batch["window_length"]) for batch in batches)
        assert longest == cli.trial_steps.plan.window_counts(0)[:, 2].max()
    if name == "adapters":
        assert found["trained"] < found["parameters"]
        assert found["gradients"] == 4 * found["trained"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--resume"], "--dry_run: cannot be combined with --resume or --ckpt_path"),
        (["validate"], "--dry_run: expected with fit only"),
    ],
)
def test_it_refuses_other_flags_and_commands(tmp_path: Path, args: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        main([args[0], "--config", str(config(tmp_path)), "--dry_run", *args[1:]])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("flags", "changes"), [([], {"data__validation": None}), (["--trainer.enable_checkpointing=false"], {})]
)
def test_it_refuses_early_stopping_that_fit_refuses(tmp_path: Path, flags: list[str], changes: dict[str, Any]) -> None:
    path, messages = config(tmp_path, **changes), []
    for dry_run in ([], ["--dry_run"]):
        with pytest.raises(UserError, match="^early_stopping.patience: expected ") as caught:
            fit(path, "--early_stopping.patience=2", *flags, *dry_run)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_it_is_a_flag_and_no_setting(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^--dry_run: expected on the command line of fit, not in a configuration"):
        fit(config(tmp_path, dry_run=True))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed_stage_2", "deepspeed_stage_3"])
def test_it_works_on_two_processes(server: Any, tmp_path: Path, strategy: str) -> None:
    if strategy.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    flags = ["--trainer.devices=2", "--trainer.strategy", strategy, "--data.batch_size=4", "--dry_run"]
    run = server.run("fit", "--config", config(tmp_path), *flags, cwd=tmp_path)
    assert run.status == 0, run.output[-4000:]
    assert run.output.count("nothing was written") == 1
    assert "steps:   3 per epoch, 3 in total" in run.output
    assert not (tmp_path / "runs").exists()
    parameters = sum(p.numel() for p in tiny.model().parameters())
    assert f"model:   {parameters:,} parameters" in run.output
