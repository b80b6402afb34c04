"""Library messages are shown only if a user can act on them."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lit_probsft.cli import quiet
from lit_probsft.cli.quiet import quieten

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

USELESS = [
    "Seed set to 0",
    "[rank: 1] Seed set to 0",
    "GPU available: False, used: False",
    "`Trainer.fit` stopped: `max_epochs=1` reached.",
    "`Trainer(val_check_interval=1)` was configured so validation will run after every batch.",
]
USEFUL = [
    "GPU available: True (cuda), used: True",
    "`Trainer.fit` stopped: No training batches.",
    "Restoring states from the checkpoint path at runs/a/checkpoints/step-00000003.ckpt",
    "data.train: 45 of 48 rows",
]


def test_useless_lines_are_filtered_however_often_filters_are_installed(caplog: pytest.LogCaptureFixture) -> None:
    quieten()
    quieten()
    caplog.set_level(logging.INFO)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logger = logging.getLogger(name)
        assert len(logger.filters) == len(set(map(id, logger.filters)))
        caplog.clear()
        for line in [*USELESS, *USEFUL]:
            logger.warning(line)
        assert [record.getMessage() for record in caplog.records] == USEFUL


def test_warnings_of_this_package_are_lines_without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    quieten()
    arguments = ("a row is gone", UserWarning)
    assert warnings.formatwarning(*arguments, quiet.__file__, 3) == "lit_probsft: warning: a row is gone\n"
    assert "UserWarning: a row is gone" in warnings.formatwarning(*arguments, __file__, 3)


def test_useful_warnings_are_shown() -> None:
    useful = [
        "This DataLoader will create 8 worker processes in total. Our suggested max number of worker in current system",
        "GPU available but not used. You can set it by doing `Trainer(accelerator='gpu')`.",
        "trainer.precision bf16-true with lr 1e-06: below 1e-5 most updates of bf16 weights round to nothing",
    ]
    useless = ["The 'train_dataloader' does not have many workers which may be a bottleneck."]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quieten()
        for message in [*useful, *useless]:
            warnings.warn(message, stacklevel=1)
    assert [str(warning.message) for warning in seen] == useful


@pytest.mark.slow
def test_the_quickstart_prints_only_its_own_lines_and_a_justified_warning(tmp_path: Path) -> None:
    """Started as a user does; the second run resumes the first."""

    def run(*flags: str) -> tuple[list[str], str]:
        few = ["--data.train.count=24", "--data.validation.count=8", "--trainer.accelerator=cpu", *flags]
        done = subprocess.run(
            [sys.executable, "-m", "lit_probsft", "fit", "--config", str(CONFIG), *few],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "LIT_PROBSFT_CACHE": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        # A progress bar overwrites its line.
        lines = [line.rsplit("\r", 1)[-1].strip() for line in done.stderr.splitlines()]
        return [line for line in lines if line], done.stdout

    rows = r"data\.(train|validation): \d+ of \d+ rows .*"
    said, out = run("--trainer.precision=bf16-true", "--model.optimizer.lr=1e-6")
    assert len(said) == 3, said
    assert re.fullmatch(rows, said[0])
    assert re.fullmatch(rows, said[1])
    assert (
        "trainer.precision bf16-true with lr 1e-06: below 1e-5 most updates of bf16 weights round to nothing" in said[2]
    )
    assert out.splitlines()[-1].startswith("         python -m lit_probsft predict --config runs/quickstart")
    assert "real_accelerator" not in out
    same = ["--trainer.precision=bf16-true", "--model.optimizer.lr=1e-3", "--trainer.max_epochs=2"]
    said, _ = run(*same, "--resume")
    assert all(re.fullmatch(rows, line) for line in said[:2])
    assert said[2:] == [
        "Restoring states from the checkpoint path at runs/quickstart/checkpoints/step-00000002.ckpt",
        "--resume: changed since the checkpoint:",
        "trainer.max_epochs: 1 -> 2",
        "model.optimizer.lr: 1e-06 -> 0.001",
        "resuming runs/quickstart from checkpoints/step-00000002.ckpt: step 2 of 4, epoch 2 of 2",
    ]
