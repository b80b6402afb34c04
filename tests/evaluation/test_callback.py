"""Evaluation during training: it changes nothing of the training, and a resumed run continues it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.evaluation.evaluation import Evaluation
from tests import tiny
from tests.cli.test_fit import STOPPER, config, fit, rows_of, slow


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stopper_of_test_callback.py").write_text(STOPPER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def dropping(folder: Path) -> Path:
    """Two epochs of three steps of a model with dropout, and five questions."""
    rows = [{"question": f"{i} + {i} =", "answer": str(2 * i)} for i in range(5)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
    source = {"class_path": "RandomCausalLM", "init_args": {"config": model}}
    return config(folder, model__model=source, trainer__max_epochs=2)


ASKED = ["--evaluation.tasks=Exact:sums.jsonl", "--evaluation.max_new_tokens=4"]
SAMPLED = ["--evaluation.n=2", "--evaluation.temperature=1", "--evaluation.limit=3"]


def evaluated(name: str) -> list[dict[str, str]]:
    rows = rows_of(Path("runs", name, "metrics.csv"))
    return [{key: value for key, value in row.items() if value} for row in rows if row.get("eval/sums/accuracy")]


def answers(name: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(Path("runs", name, "evaluation").iterdir())}


@pytest.mark.parametrize(
    ("flags", "steps", "stop"),
    [
        (SAMPLED, [0, 3, 6], 4),  # the first step after an evaluation at a checkpoint
        slow(["--evaluation.every=2"], [0, 2, 4, 6], 5),
        slow(["--data.validation=null"], [0, 6], 4),
        slow(["--evaluation.every=0.5", "--checkpoints.save_every=1"], [0, 2, 3, 5, 6], 3),
    ],
)
def test_training_is_the_same_with_evaluation_interrupted_or_not(
    tmp_path: Path, flags: list[str], steps: list[int], stop: int
) -> None:
    path = dropping(tmp_path)
    base = [flag for flag in flags if not flag.startswith("--evaluation")]
    without = fit(path, "--name", "without", *base)
    whole = fit(path, "--name", "whole", *ASKED, *flags)
    stopper = f"--trainer.callbacks=[{{class_path: stopper_of_test_callback.Stopper, init_args: {{step: {stop}}}}}]"
    with pytest.raises(RuntimeError, match="the power goes out"):
        fit(path, "--name", "parts", *ASKED, *flags, stopper)
    parts = fit(path, "--name", "parts", *ASKED, *flags, "--resume")
    for name, value in tiny.weights(without.model).items():
        assert torch.equal(tiny.weights(whole.model)[name], value), name
        assert torch.equal(tiny.weights(parts.model)[name], value), name
    assert [int(row["step"]) for row in evaluated("whole")] == [max(step - 1, 0) for step in steps]
    assert evaluated("parts") == evaluated("whole")
    assert list(answers("whole")) == [f"step-{step:08d}.jsonl" for step in steps]
    assert answers("parts") == answers("whole")
    one, other = (json.loads(Path("runs", name, "run.json").read_text()) for name in ("whole", "parts"))
    assert one["evaluation"] == other["evaluation"]
    assert [one["evaluation"][when]["step"] for when in ("first", "last")] == [0, 6]
    assert (
        one["metrics"].items() >= {key: float(evaluated("whole")[-1][key]) for key in ("eval/sums/accuracy",)}.items()
    )


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Let the evaluations of a run have these accuracies, one after the other."""
    numbers, left = Evaluation.numbers, list(accuracies)

    def of(self: Evaluation, rows: Any) -> Any:
        found: Any = numbers(self, rows)
        found["sums"]["accuracy"] = {**found["sums"]["accuracy"], "mean": left.pop(0)}
        return found

    monkeypatch.setattr(Evaluation, "numbers", of)


BEST = ["--checkpoints.best=eval/sums/accuracy", "--checkpoints.export=best"]


@pytest.mark.parametrize(
    ("flags", "accuracies", "best", "last"),
    [
        slow(["--evaluation.every=1", "--data.validation=null"], [0.5, 0.1, 0.4, 0.2, 0.3, 0.4, 0.1], 2, 6),
        slow(["--evaluation.every=1", "--checkpoints.asynchronous=true"], [0.5, 0.1, 0.1, 0.2, 0.3, 0.2, 0.4], 6, 6),
        slow(["--validate_every=2"], [0.0, 0.1, 0.4, 0.3], 4, 6),
        slow(["--validate_every=1", "--early_stopping.patience=2"], [0.0, 0.1, 0.4, 0.4, 0.3], 2, 4),
    ],
)
def test_the_best_checkpoint_has_the_highest_accuracy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    accuracies: list[float],
    best: int,
    last: int,
) -> None:
    scripted(monkeypatch, accuracies)
    run = fit(dropping(tmp_path), "--name", "run", *ASKED, *BEST, *flags)
    assert run.trainer.global_step == last
    folder = Path("runs/run/checkpoints")
    assert (folder / "best.ckpt").samefile(folder / f"step-{best:08d}.ckpt")
    record = json.loads(Path("runs/run/run.json").read_text())
    assert record["exported_step"] == best
    said = capsys.readouterr().out
    assert f"sums {100 * accuracies[0]:.1f} -> {100 * accuracies[-1]:.1f} %" in said
    if last < 6:
        assert "eval/sums/accuracy has not improved for 2 validations (best 0.4 at step 2)" in said
