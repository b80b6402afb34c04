"""Turns errors that Lightning raises late into a `UserError` that names the flag."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jsonargparse import Namespace

from lit_probsft.errors import UserError, first_line

_KNOWN = (
    (
        r"`val_check_interval` \((\S+)\) must be less than or equal to the number of the training batches \((\d+)\)",
        "trainer.val_check_interval",
        "expected at most {1}, the micro-batches of an epoch, got {0}; to count across epochs, set "
        "trainer.check_val_every_n_epoch to null",
    ),
    (
        r"You requested to check (\S+) of the `(\w+)_dataloader` but \S+ \* (\d+) < 1",
        "trainer.limit_{1}_batches",
        "expected a share that leaves at least one of the {2} batches, got {0}",
    ),
)
"""Lightning's message, our argument and our problem."""


def trainer_error(error: Exception, flags: Iterable[str]) -> UserError:
    """What Lightning's Trainer raises when it is built.

    Args:
        error: raised by it.
        flags: names of the Trainer's arguments. The first one in the message is taken for the wrong one.
    """
    if (known := _known(error)) is not None:
        return known
    message = first_line(error)
    found = {flag: re.search(rf"\b{flag}\b", message) for flag in flags}
    places = {flag: match.start() for flag, match in found.items() if match}
    flag = min(places, key=places.__getitem__, default="")
    if not flag and re.search("accelerator|backend", message, re.IGNORECASE):
        flag = "accelerator"
    return UserError(f"trainer.{flag}" if flag else "trainer", f"{message}")


def run_error(error: Exception, config: Namespace) -> UserError | None:
    """What Lightning raises while a command runs, if the user can fix it; None for all others."""
    if (known := _known(error)) is not None:
        return known
    if isinstance(error, OSError) and error.filename is not None:  # of a profiler, a logger, a callback ...
        return UserError(str(error.filename), first_line(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    named = re.match(r"`(\w+)`", lines[0])
    if named and named[1] in config.trainer:
        return UserError(f"trainer.{named[1]}", f"{lines[0]}")
    if not re.search(r"loading state_dict|loaded state dict", lines[0]):
        return None
    flag = "--resume" if config.get("resume") else "--ckpt_path"
    return UserError(flag, f"{config.ckpt_path} is not a checkpoint of this model: {lines[-1]}")


def _known(error: Exception) -> UserError | None:
    for pattern, argument, problem in _KNOWN:
        if match := re.search(pattern, str(error)):
            return UserError(argument.format(*match.groups()), problem.format(*match.groups()))
    return None
