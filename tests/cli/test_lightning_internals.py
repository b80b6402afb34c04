"""The private names of Lightning that lit_probsft.cli.lightning_internals relies on."""

from __future__ import annotations

import inspect

import pytest
from lightning.pytorch.cli import LightningCLI

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
