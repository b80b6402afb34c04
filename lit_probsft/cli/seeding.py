"""The run's seed, as `--seed_everything` gives it."""

from __future__ import annotations

import os
import secrets

from jsonargparse import Namespace

from lit_probsft.cli.flags import run_folder
from lit_probsft.errors import UserError
from lit_probsft.parallel.seeds import LARGEST, inherited_seed
from lit_probsft.storage.atomic import read_json

_OPTION = "seed_everything"


def chosen_seed(config: Namespace) -> int:
    """The number that `--seed_everything` means.

    A number is the seed. True is the seed of the run if it exists and is not replaced, else a random number. False is
    the seed that the process already has (of PL_GLOBAL_SEED, or of an earlier `lightning.seed_everything` in a
    notebook), or 0.

    Args:
        config: of the command.

    Raises:
        UserError: the number is out of range; or a seed is to be drawn in one of several processes, which would each
            draw another.
    """
    given: bool | int = config.seed_everything
    if given is False:
        return inherited_seed() or 0
    if given is True:
        record = run_folder(config).record
        if config.overwrite or not record.exists():
            return _drawn_seed()
        try:
            given = int((read_json(record) or {})["seed"])
        except (UserError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(_OPTION, f"expected a number, because {record} does not show the run's seed") from error
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
