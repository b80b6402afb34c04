"""The one exception that a user can cause, and what makes its message useful."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class UserError(ValueError):
    """Something in a config, a flag, a file or a call is wrong and only its author can mend it.

    The command line prints the message from rank 0, without a traceback, and exits with status 2; `main()` and the
    Python interface raise it. A message names the argument, what was expected and what came.
    """


def first_rank() -> bool:
    """Is this the process that tells the user, as far as its environment knows?"""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def near_matches(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'a' or 'b'?`, or an empty string where nothing in `known` is close to `name`."""
    wanted, by_lower = name.lower(), {candidate.lower(): candidate for candidate in known}
    longer = sorted((other for other in by_lower if len(wanted) > 2 and other.startswith(wanted)), key=len)
    close = longer or difflib.get_close_matches(wanted, by_lower, cutoff=0.6)
    names = [repr(by_lower[match]) for match in close[:3]]
    return f" Did you mean {' or '.join(names)}?" if names else ""


def first_line(error: BaseException) -> str:
    """What an exception of somebody else says, as far as it fits into a line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
