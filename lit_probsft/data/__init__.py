"""Rows to micro-batches: sources, conversations, tokenizers, the mask, the plan and the data module."""

from lit_probsft.data.datamodule import InstructionDataModule
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
    "Plan",
    "PretrainedTokenizer",
    "Rows",
    "Source",
    "TokenizerSource",
    "tokenize_conversation",
    "tokenize_prompt",
]
