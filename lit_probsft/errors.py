"""The exception for errors that the user can fix, and helpers for its messages."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Something in a configuration, a flag, a file or a call is wrong, and its author can fix it.

    The command line prints the message from rank 0, without a traceback, and exits with status 2. `main()` and the
    Python API raise it.

    Args:
        argument: the flag, option or file that is wrong, as the caller named it; empty if it is not known.
        problem: what was expected and what came.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument = argument
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.argument}: {self.problem}" if self.argument else self.problem

    def within(self, prefix: str, where: str = "") -> UserError:
        """The same error as the owner of the argument reports it.

        Args:
            prefix: the option that holds the argument, such as `data.train`.
            where: appended to the problem, such as the number of a row.
        """
        problem = self.problem.removesuffix(".") + where if where else self.problem
        return UserError(".".join(filter(None, (prefix, self.argument))), problem)


@contextlib.contextmanager
def errors_within(prefix: str, where: str = "") -> Iterator[None]:
    """Raise a `UserError` from this block as `error.within(prefix, where)`."""
    try:
        yield
    except UserError as error:
        raise error.within(prefix, where) from error


def check_range(argument: str, value: float | None, least: float, most: float) -> None:
    """Refuse a number outside of `least` to `most`, both included, or NaN; None passes.

    Raises:
        UserError: names the argument and the bound.
    """
    if value is None or least <= value <= most:
        return
    bound = f"at most {most}" if value > most else f"at least {least}"
    raise UserError(argument, f"expected {bound}, got {value}")


def first_rank() -> bool:
    """Whether this is rank 0, judging by the environment."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def near_matches(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'a' or 'b'?`, or an empty string if nothing in `known` is close to `name`."""
    wanted, by_lower = name.lower(), {candidate.lower(): candidate for candidate in known}
    longer = sorted((other for other in by_lower if len(wanted) > 2 and other.startswith(wanted)), key=len)
    close = longer or difflib.get_close_matches(wanted, by_lower, cutoff=0.6)
    names = [repr(by_lower[match]) for match in close[:3]]
    return f" Did you mean {' or '.join(names)}?" if names else ""


def causes(error: BaseException, *, hidden: bool = False) -> Iterator[BaseException]:
    """The error and the errors that caused it, each once: an error raised again may be among its own causes.

    Args:
        error: the last one.
        hidden: include causes that `raise ... from None` hides.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (cause.__context__ if hidden or not cause.__suppress_context__ else None)


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the exception's name; an OSError without number and path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
