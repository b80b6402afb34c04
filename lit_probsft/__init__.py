"""Supervised fine-tuning of causal language models with any probability-based objective f(p).

Public names load on first use, because their imports (torch, lightning, transformers) take seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {
    "ProbSFTModule": "training.module",
    "InstructionDataModule": "data",
    "Objective": "objectives",
    "TokenStats": "objectives",
    "objective_loss": "head",
    "PretrainedCausalLM": "model",
    "RandomCausalLM": "model",
    "Reference": "model.reference",
    "Schedule": "training.optim",
    "Generation": "model.generation",
    "UserError": "errors",
    "main": "cli",
}

__all__ = [
    "Generation",
    "InstructionDataModule",
    "Objective",
    "PretrainedCausalLM",
    "ProbSFTModule",
    "RandomCausalLM",
    "Reference",
    "Schedule",
    "TokenStats",
    "UserError",
    "main",
    "objective_loss",
]

if TYPE_CHECKING:
    from lit_probsft.cli.commands import main
    from lit_probsft.data import InstructionDataModule
    from lit_probsft.errors import UserError
    from lit_probsft.head.loss import objective_loss
    from lit_probsft.model import PretrainedCausalLM, RandomCausalLM
    from lit_probsft.model.generation import Generation
    from lit_probsft.model.reference import Reference
    from lit_probsft.objectives import Objective, TokenStats
    from lit_probsft.training.module import ProbSFTModule
    from lit_probsft.training.optim import Schedule


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
