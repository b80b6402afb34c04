"""Ends a command on a signal: one message, and the exit status that shells and schedulers expect."""

from __future__ import annotations

import signal
from typing import Any

STOPPED = 143
"""Exit status of a command that a signal stopped: 128 + SIGTERM, which tells schedulers that it is not finished."""

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C stopped: 128 + SIGINT, as shells expect it."""


class StoppedBySignal(SystemExit):
    """The command ends because of a signal; whatever it had to save is saved.

    Args:
        message: why, for the user.
        together: whether all ranks end at this point.
        number: of the signal.
    """

    def __init__(self, message: str, *, together: bool, number: int = signal.SIGTERM) -> None:
        super().__init__(INTERRUPTED if number == signal.SIGINT else STOPPED)
        self.message, self.together = message, together


def stop_on_sigterm() -> None:
    """Raise `StoppedBySignal` in the main thread on SIGTERM; later ones are ignored while the command ends.

    `fit` replaces this handler, because it has a checkpoint to save.
    """
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise StoppedBySignal(f"stopped by {signal.Signals(number).name}", together=False)
