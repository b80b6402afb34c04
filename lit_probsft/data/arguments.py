"""What `InstructionDataModule` is given: values out of range, and options that do not go together, refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lit_probsft.errors import UserError, near_matches

LENGTH_POOL = 50
"""Optimizer steps whose documents are sorted by length together, where nothing else is said."""
SHUFFLE_BUFFER = 10_000
"""Rows of a stream that are shuffled together, where nothing else is said."""

_AT_LEAST = {
    "max_length": 2,
    "batch_size": 1,
    "eval_batch_size": 1,
    "length_pool": 0,
    "seed": 0,
    "num_workers": 0,
    "num_proc": 1,
    "shuffle_buffer": 1,
}
_ONE_OF = {
    "format": ("chat", "plain"),
    "turns": ("all", "first", "last"),
    "reasoning": ("learn", "mask", "drop"),
    "on_bad_row": ("error", "skip"),
    "overflow": ("error", "truncate", "drop"),
    "duplicates": ("keep", "remove"),
}
_SET_NAME = re.compile(r"[\w.\-]+")
_NOT_A_SET = ("validation", "loss", "nll", "mean_p", "accuracy", "inside", "ece", "entropy")
"""Names that mean something else where metrics are called val/SET/nll."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse what can be refused before a file is opened.

    Args:
        given: all arguments of `InstructionDataModule`, by name.

    Raises:
        UserError: names the argument, what was expected and what came.
    """
    for argument, least in _AT_LEAST.items():
        if given[argument] is not None and given[argument] < least:
            raise UserError(f"data.{argument}", f"expected at least {least}, got {given[argument]}")
    for argument, known in _ONE_OF.items():
        if (word := given[argument]) not in known:
            raise UserError(
                f"data.{argument}", f"expected one of {', '.join(known)}, got {word!r}.{near_matches(word, known)}"
            )
    _check_held_out(given)
    if given["format"] == "plain" and given["chat_template"] is not None:
        raise UserError("data.chat_template", "expected none with `data.format: plain`, which uses no template")
    _check_order(given)


def _check_held_out(given: Mapping[str, Any]) -> None:
    """Validation rows, and the sets that are watched beside them."""
    fraction = given["validation_fraction"]
    if not 0 <= fraction < 1:
        raise UserError("data.validation_fraction", f"expected at least 0 and less than 1, got {fraction}")
    if fraction and given["validation"] is not None:
        raise UserError("data.validation_fraction", "expected it or data.validation, got both")
    if fraction and given["train"] is None:
        raise UserError("data.validation_fraction", "expected data.train to take the rows from, got none")
    for name in given["watch"] or {}:
        if not _SET_NAME.fullmatch(name):
            raise UserError("data.watch", f"expected names of letters, digits, `_`, `-` and `.`, got {name!r}")
        if name in _NOT_A_SET:
            raise UserError("data.watch", f"expected a name that no metric has, got {name!r}")
    if given["watch"] and given["validation"] is None and not fraction:
        raise UserError(
            "data.watch",
            "expected data.validation or data.validation_fraction beside it, which say what is gained, got neither",
        )


def _check_order(given: Mapping[str, Any]) -> None:
    """Packing and streaming, which decide how training goes through its rows."""
    if given["packing"] and given["max_length"] is None:
        raise UserError("data.packing", "expected data.max_length, the tokens of a pack, got none")
    if given["packing"] and given["length_pool"] != LENGTH_POOL:
        raise UserError(
            "data.length_pool",
            f"expected it left alone with data.packing, whose rows are all of one length, got {given['length_pool']}",
        )
    if not given["streaming"] and given["shuffle_buffer"] != SHUFFLE_BUFFER:
        raise UserError("data.shuffle_buffer", f"expected it with data.streaming only, got {given['shuffle_buffer']}")
    if given["streaming"] and given["validation_fraction"]:
        raise UserError(
            "data.validation_fraction",
            "expected none with data.streaming, which does not know the number of rows "
            f"(name a data.validation), got {given['validation_fraction']}",
        )
