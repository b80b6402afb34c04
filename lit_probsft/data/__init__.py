"""Turns rows into micro-batches: sources, conversations, tokenizers, masks, plans and the data module.

Names are imported on first use, because a worker that only collates needs neither Lightning nor a tokenizer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_probsft.data.batches.packing import PackedPlan
    from lit_probsft.data.batches.plan import MicroBatch, Plan
    from lit_probsft.data.datamodule import InstructionDataModule
    from lit_probsft.data.rows.choices import MultipleChoice
    from lit_probsft.data.rows.figlet import FigletPuzzles
    from lit_probsft.data.rows.mixture import Mixture, Part
    from lit_probsft.data.rows.row_source import Rows
    from lit_probsft.data.rows.source import Source
    from lit_probsft.data.tokens.tokenization import tokenize_conversation, tokenize_prompt
    from lit_probsft.data.tokens.tokenizers import BPETokenizer, ByteTokenizer, PretrainedTokenizer, TokenizerSource

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

_MODULES = {
    "rows.choices": ("MultipleChoice",),
    "datamodule": ("InstructionDataModule",),
    "rows.mixture": ("Mixture", "Part"),
    "batches.packing": ("PackedPlan",),
    "batches.plan": ("MicroBatch", "Plan"),
    "rows.figlet": ("FigletPuzzles",),
    "rows.row_source": ("Rows",),
    "rows.source": ("Source",),
    "tokens.tokenization": ("tokenize_conversation", "tokenize_prompt"),
    "tokens.tokenizers": ("BPETokenizer", "ByteTokenizer", "PretrainedTokenizer", "TokenizerSource"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"lit_probsft.data.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
