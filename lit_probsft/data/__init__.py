"""Rows to micro-batches: sources, conversations, tokenizers, the mask, the plan and the data module.

Names are loaded when they are asked for: a worker that only collates needs neither Lightning nor a tokenizer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_probsft.data.choices import MultipleChoice
    from lit_probsft.data.datamodule import InstructionDataModule
    from lit_probsft.data.mixture import Mixture, Part
    from lit_probsft.data.packing import PackedPlan
    from lit_probsft.data.plan import MicroBatch, Plan
    from lit_probsft.data.sources import FigletPuzzles, Rows, Source
    from lit_probsft.data.tokenization import tokenize_conversation, tokenize_prompt
    from lit_probsft.data.tokenizers import BPETokenizer, ByteTokenizer, PretrainedTokenizer, TokenizerSource

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "FigletPuzzles",
    "InstructionDataModule",
    "MicroBatch",
    "Mixture",
    "MultipleChoice",
    "PackedPlan",
    "Part",
    "Plan",
    "PretrainedTokenizer",
    "Rows",
    "Source",
    "TokenizerSource",
    "tokenize_conversation",
    "tokenize_prompt",
]

_HOMES = {
    "choices": ("MultipleChoice",),
    "datamodule": ("InstructionDataModule",),
    "mixture": ("Mixture", "Part"),
    "packing": ("PackedPlan",),
    "plan": ("MicroBatch", "Plan"),
    "sources": ("FigletPuzzles", "Rows", "Source"),
    "tokenization": ("tokenize_conversation", "tokenize_prompt"),
    "tokenizers": ("BPETokenizer", "ByteTokenizer", "PretrainedTokenizer", "TokenizerSource"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"lit_probsft.data.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
