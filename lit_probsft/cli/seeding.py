"""The run's seed, as `--seed_everything` gives it."""

from __future__ import annotations

import os
import secrets

from lit_probsft.errors import UserError
from lit_probsft.parallel.seeds import LARGEST, inherited_seed

_OPTION = "seed_everything"


def chosen_seed(given: bool | int) -> int:
    """The number that `--seed_everything` stands for.

    Args:
        given: a number is the seed. True draws one. False takes the seed that the process already has (of
            PL_GLOBAL_SEED, or of an earlier `lightning.seed_everything` in a notebook), or 0.

    Raises:
        UserError: the number is out of range; or a seed is to be drawn in one of several processes, which would each
            draw another.
    """
    if given is False:
        return inherited_seed() or 0
    if given is True:
        return _drawn_seed()
    if not 0 <= given <= LARGEST:
        raise UserError(_OPTION, f"expected a number from 0 to {LARGEST}, got {given}")
    return given


def _drawn_seed() -> int:
    """A random seed; in a process that another one has started, the seed that the other one has drawn."""
    processes = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or "1"
    if processes == "1":
        return secrets.randbelow(LARGEST + 1)
    if (inherited := inherited_seed()) is None:
        raise UserError(
            _OPTION, f"expected a number, because each of the {processes} processes would draw another seed, got true"
        )
    return inherited
