"""A resumed run follows its new configuration and lists the changed flags."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import yaml

from lit_probsft.errors import UserError
from lit_probsft.run.changed_flags import changed_flags, describe_changes
from tests import tiny
from tests.cli.test_fit import config, fit, rows_of


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the run logged about its resumption."""
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if line.startswith(("--resume", "  "))]


def test_each_changed_flag_is_listed_and_takes_effect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(config(tmp_path, data__seed=0))
    caplog.set_level(logging.INFO)
    flags = {
        "seed_everything": "7", "checkpoints.keep_last": "3", "validate_every": "2", "early_stopping.patience": "9",
        "model.optimizer.lr": "0.003", "model.optimizer.weight_decay": "0.2", "model.schedule.decay": "linear",
        "data.batch_size": "4", "trainer.accumulate_grad_batches": "2", "trainer.max_epochs": "3",
        "trainer.gradient_clip_val": "0.5",
    }  # fmt: skip
    cli = fit(tmp_path / "tiny.yaml", "--resume", *(f"--{flag}={value}" for flag, value in flags.items()))
    assert said(caplog)[:1] == ["--resume: changed since the checkpoint:"]
    assert said(caplog)[-2:] == [
        "--resume: changed since the checkpoint, without effect (the checkpoint holds their results):",
        "  seed_everything: 0 -> 7",
    ]
    assert sorted(said(caplog)[1:-2]) == [
        "  checkpoints.keep_last: 2 -> 3",
        "  data.batch_size: 8 -> 4",
        "  early_stopping.patience: none -> 9",
        "  model.optimizer.lr: 0.01 -> 0.003",
        "  model.optimizer.weight_decay: 0.01 -> 0.2",
        "  model.schedule.decay: cosine -> linear",
        "  trainer.accumulate_grad_batches: 1 -> 2",
        "  trainer.gradient_clip_val: 1.0 -> 0.5",
        "  trainer.max_epochs: 1 -> 3",
        "  validate_every: none -> 2",
    ]
    # They take effect: the learning rate follows the schedule over nine steps.
    assert cli.trainer.global_step == 9
    rows = [row for row in rows_of(tmp_path / "runs/tiny/metrics.csv") if row["lr"]]
    assert [float(row["lr"]) for row in rows[3:]] == pytest.approx(
        [0.003 * cli.model.schedule.factor(step, 9) for step in range(3, 9)], rel=1e-6
    )
    groups = cli.trainer.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
    assert cli.trainer.gradient_clip_val == 0.5
    validated = [int(row["step"]) + 1 for row in rows_of(tmp_path / "runs/tiny/metrics.csv") if row["val/nll"]]
    assert validated[2:] == [4, 6, 8, 9]
    written = yaml.safe_load((tmp_path / "runs/tiny/config.yaml").read_text())
    assert written["trainer"]["max_epochs"] == 3
    assert cli.model.seed == 0

    caplog.clear()
    again = ["--trainer.max_epochs=4", *(f"--{flag}={value}" for flag, value in flags.items() if "epochs" not in flag)]
    fit(tmp_path / "tiny.yaml", "--resume", *again)
    assert said(caplog) == [
        "--resume: changed since the checkpoint:",
        "  trainer.max_epochs: 3 -> 4",
    ]


def test_a_refused_resumption_lists_and_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(config(tmp_path))
    before = (tmp_path / "runs/tiny/config.yaml").read_text()
    caplog.set_level(logging.INFO)
    with pytest.raises(UserError, match="--resume: expected the plan's seed as in the checkpoint, 0, got 3"):
        fit(tmp_path / "tiny.yaml", "--resume", "--trainer.max_epochs=2", "--seed_everything=3")
    assert said(caplog) == []
    assert (tmp_path / "runs/tiny/config.yaml").read_text() == before


@pytest.mark.slow
def test_the_best_step_is_forgotten_with_another_validation_set(tmp_path: Path) -> None:
    path = config(tmp_path)
    fit(path)
    record = json.loads((tmp_path / "runs/tiny/run.json").read_text())
    tiny.write_rows(tmp_path / "harder.jsonl", 4, seed=2)
    cli = fit(path, "--resume", "--trainer.max_epochs=2", "--data.validation.path", str(tmp_path / "harder.jsonl"))
    assert cli._stop.best_step == 6  # the only validation on it
    assert json.loads((tmp_path / "runs/tiny/run.json").read_text())["validations"]["best"]["step"] == 6
    best = (tmp_path / "runs/tiny/checkpoints/best.ckpt").resolve().name
    assert record["validations"]["best"]["step"] == 3
    assert not math.isinf(cli._stop.best_score)
    assert best in ("best.ckpt", "step-00000006.ckpt")


def test_options_of_a_class_are_listed_only_if_the_class_changed() -> None:
    before = """
    model: {class_path: a.Module, init_args: {logger: null, new_in_old: 1, objective: {class_path: x.NLL}}}
    name: one
    """
    now = """
    model:
      class_path: a.Module
      init_args:
        logger: {class_path: b.Bars, init_args: {width: 3}}
        new_in_new: 2
        objective: {class_path: y.NLL}
    name: other
    """
    changed = changed_flags(before, now)
    assert describe_changes(changed)[1:] == [
        "  model.logger: none -> Bars",
        "  model.logger.width: none -> 3",
        "  model.objective: x.NLL -> y.NLL",
    ]
