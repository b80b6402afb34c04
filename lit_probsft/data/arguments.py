"""Checks the arguments of `InstructionDataModule`: values out of range, and options that exclude each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lit_probsft.errors import UserError, check_range, near_matches
from lit_probsft.parallel import MOST_PROCESSES

LENGTH_POOL = 50
"""By default, the documents of this many optimizer steps are sorted by length together."""
SHUFFLE_BUFFER = 10_000
"""By default, this many rows of a stream are shuffled together."""

_RANGES = {
    "max_length": (2, 2**31),
    "batch_size": (1, 2**20),
    "eval_batch_size": (1, 2**20),
    "length_pool": (0, 2**31),
    "seed": (0, 2**63),
    "num_workers": (0, MOST_PROCESSES),
    "num_proc": (1, MOST_PROCESSES),
    "shuffle_buffer": (1, 2**31),
}
"""The least and the most of each number."""
_CHOICES = {
    "format": ("chat", "plain"),
    "turns": ("all", "first", "last"),
    "reasoning": ("learn", "mask", "drop"),
    "special_tokens_in_text": ("text", "refuse", "keep"),
    "rewritten_history": ("keep", "split"),
    "on_bad_row": ("error", "skip"),
    "overflow": ("error", "truncate", "drop"),
    "duplicates": ("keep", "remove"),
}
_SET_NAME = re.compile(r"[\w.\-]+")
_RESERVED_NAMES = ("validation", "loss", "nll", "mean_p", "accuracy", "inside", "ece", "entropy")
"""Names that would be ambiguous in a metric `val/SET/nll`."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Check arguments before any file is opened.

    Args:
        given: all arguments of `InstructionDataModule`, by name.

    Raises:
        UserError: names the argument, what was expected and what was given.
    """
    for argument, (least, most) in _RANGES.items():
        check_range(f"data.{argument}", given[argument], least, most)
    for argument, choices in _CHOICES.items():
        if (value := given[argument]) not in choices:
            hint = near_matches(value, choices)
            raise UserError(f"data.{argument}", f"expected one of {', '.join(choices)}, got {value!r}.{hint}")
    _check_held_out(given)
    for argument in ("chat_template", "template_options"):
        if given["format"] == "plain" and given[argument]:
            raise UserError(f"data.{argument}", "cannot be combined with `data.format: plain`, which uses no template")
    if given["format"] == "plain" and given["rewritten_history"] != "keep":
        raise UserError(
            "data.rewritten_history",
            f"needs a chat template, which `data.format: plain` does not use; got {given['rewritten_history']}",
        )
    _check_packing_and_streaming(given)


def _check_held_out(given: Mapping[str, Any]) -> None:
    """Check the validation rows and the sets to watch."""
    fraction = given["validation_fraction"]
    if not 0 <= fraction < 1:
        raise UserError("data.validation_fraction", f"expected at least 0 and less than 1, got {fraction}")
    if fraction and given["validation"] is not None:
        raise UserError("data.validation_fraction", "cannot be combined with data.validation")
    if fraction and given["train"] is None:
        raise UserError("data.validation_fraction", "needs data.train, from which it takes the rows")
    for name in given["watch"] or {}:
        if not _SET_NAME.fullmatch(name):
            raise UserError("data.watch", f"expected names of letters, digits, `_`, `-` and `.`, got {name!r}")
        if name in _RESERVED_NAMES:
            raise UserError("data.watch", f"expected a name other than a metric's, got {name!r}")
    if given["watch"] and given["validation"] is None and not fraction:
        raise UserError(
            "data.watch",
            "needs data.validation or data.validation_fraction, to measure what training gains",
        )


def _check_packing_and_streaming(given: Mapping[str, Any]) -> None:
    """Check the options that decide the order of training rows."""
    if given["packing"] and given["max_length"] is None:
        raise UserError("data.packing", "needs data.max_length, the tokens of a pack")
    if given["packing"] and given["length_pool"] != LENGTH_POOL:
        raise UserError(
            "data.length_pool",
            f"cannot be combined with data.packing, whose rows all have one length, got {given['length_pool']}",
        )
    if not given["streaming"] and given["shuffle_buffer"] != SHUFFLE_BUFFER:
        raise UserError("data.shuffle_buffer", f"needs data.streaming, got {given['shuffle_buffer']}")
    if given["streaming"] and given["validation_fraction"]:
        raise UserError(
            "data.validation_fraction",
            "cannot be combined with data.streaming, where the number of rows is unknown (use data.validation), got "
            f"{given['validation_fraction']}",
        )
