"""The flags of a small parser, for the tests of this folder."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from lit_probsft.data import InstructionDataModule
from lit_probsft.training.module import ProbSFTModule

FLAGS: dict[str, Any] = {
    "config": Any,
    "name": str | None,
    "model": ProbSFTModule | None,
    "data": InstructionDataModule | None,
    "trainer": None,
    "trainer.callbacks": list[Callback] | Callback | None,
    "trainer.max_epochs": int | None,
    "trainer.devices": list[int] | str | int,
    "resume": bool,
}
