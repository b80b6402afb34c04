"""The seeds of a run: one number, from which everything that is random in the run follows."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator

from lit_probsft.errors import UserError

LARGEST = 2**32 - 1
"""The largest seed that Lightning's `seed_everything` takes."""

_VARIABLE = "PL_GLOBAL_SEED"  # set by `seed_everything`; the processes that a run starts inherit it


def run_seed(own: int | None = None) -> int:
    """The seed of something random: its own if it has one, else the run's.

    The run's seed is the number that Lightning's `seed_everything` was last called with, as `--seed_everything` does; 0
    before any call. Call this once, when an object is built, so that the object keeps its number and can report it.

    Args:
        own: the object's own seed; None for the run's.

    Raises:
        UserError: the environment variable that holds the run's seed is not a whole number.
    """
    if own is not None:
        return own
    text = os.environ.get(_VARIABLE) or "0"
    if not text.isdecimal():
        raise UserError(_VARIABLE, f"expected a whole number, the run's seed, got {text!r}")
    return int(text)


def inherited_seed() -> int | None:
    """The seed that this process got from its environment or from an earlier `seed_everything`; None without one."""
    return run_seed() if os.environ.get(_VARIABLE) else None


@contextlib.contextmanager
def with_run_seed(seed: int) -> Iterator[None]:
    """Within this block, the run's seed is `seed`. The random state of the process stays as it is."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(seed)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed from integers such as (seed, step, micro-batch, rank); different integers give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
