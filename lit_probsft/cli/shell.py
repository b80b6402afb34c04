"""The shell's entry point: runs `main`, reports an error once, and sets the exit status."""

from __future__ import annotations

import os
import sys
import traceback
from types import ModuleType
from typing import NoReturn

from lit_probsft.cli.commands import main
from lit_probsft.cli.memory import memory_error
from lit_probsft.errors import UserError, causes, first_rank
from lit_probsft.parallel.stopping import stop_on_sigterm


def run() -> NoReturn:
    """Run `main` and exit.

    Only the rank that fails first reports the error. A user's error prints one message without a traceback and exits
    with status 2; any other error prints its traceback and exits with 1; a signal exits with 143, Ctrl-C with 130.
    """
    # Threads that spin while they wait slow down a small model several times on a busy machine. torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    stop_on_sigterm()
    all_end = True  # whether every rank ends here, or only this one
    try:
        main()
        status = 0
    except SystemExit as stop:  # after a signal, after --help, or where Lightning passes an interruption on
        status = stop.code if isinstance(stop.code, int) else 1
        status = 130 if isinstance(stop.__context__, KeyboardInterrupt) else status
        message, all_end = f"lit_probsft: {getattr(stop, 'message', 'interrupted')}", getattr(stop, "together", True)
        if not all_end:
            status = _report(stop, status, message)
        elif first_rank() and status:  # --help has status 0
            print(message, file=sys.stderr)
    except KeyboardInterrupt:
        status, all_end = 130, False
        if first_rank():
            print("lit_probsft: interrupted", file=sys.stderr)
    except Exception as error:
        status, all_end = _report_error(error), False
    if (processes := _processes()) is not None:
        # After a failure the others wait for this process in vain; otherwise they are about to end.
        processes.end_children(patience=30 if all_end else 2)
    sys.stdout.flush()
    sys.stderr.flush()
    if not all_end and not _single_process():
        os._exit(status)  # a communicator whose peer has died can block forever on exit
    sys.exit(status)


def _report_error(error: Exception) -> int:
    """Report an error, in one message if the user can fix it; return the exit status."""
    ours = memory_error(error) or error
    if not isinstance(ours, UserError):
        return _report(error, 1, None)
    message = f"lit_probsft: error: {ours}"
    if "--debug" in sys.argv[1:] or os.environ.get("LIT_PROBSFT_DEBUG", "") not in ("", "0"):
        message = _full_traceback(error) + message
    return _report(error, 2, message)


def _full_traceback(error: BaseException) -> str:
    """The traceback with the causes that `raise ... from None` hides."""
    for cause in causes(error, hidden=True):
        cause.__suppress_context__ = False
    return "".join(traceback.format_exception(error))


def _report(error: BaseException, status: int, message: str | None) -> int:
    """Print the message (without a message, the traceback) unless another rank has; return the exit status."""
    if (processes := _processes()) is not None:
        return int(processes.report(error, status, message))
    if first_rank():
        print(message, file=sys.stderr) if message else traceback.print_exception(error)
    return status


def _processes() -> ModuleType | None:
    """`parallel.processes` if a command has imported it; otherwise there is one process."""
    return sys.modules.get("lit_probsft.parallel.processes")


def _single_process() -> bool:
    return os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")) == "1"
