"""The private names of Lightning that lit_probsft.cli.lightning_internals relies on."""

from __future__ import annotations

import inspect

import lightning as L
import pytest
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import subprocess_script

from lit_probsft.cli.lightning_internals import use_own_launcher
from lit_probsft.parallel.processes import Launcher

CHANGED = "Lightning has changed; adapt lit_probsft/cli/lightning_internals.py: "


@pytest.mark.parametrize(
    ("name", "caller"),
    [
        ("_parser", "instantiate_trainer"),
        ("_set_seed", "__init__"),
        ("_parse_ckpt_path", "__init__"),
        ("_run_subcommand", "__init__"),
    ],
)
def test_lightning_still_calls_the_private_steps(name: str, caller: str) -> None:
    assert hasattr(LightningCLI, name), f"{CHANGED}LightningCLI.{name} is gone"
    assert f"self.{name}(" in inspect.getsource(getattr(LightningCLI, caller)), f"{CHANGED}{caller} skips {name}"


def test_lightnings_launcher_is_replaced() -> None:
    assert hasattr(subprocess_script, "_SubprocessScriptLauncher"), f"{CHANGED}_SubprocessScriptLauncher is gone"
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=DDPStrategy(), logger=False, enable_checkpointing=False)
    use_own_launcher(trainer)
    assert type(trainer.strategy.launcher) is Launcher, f"{CHANGED}Strategy._launcher"
    assert trainer.strategy.launcher.num_processes == 2
