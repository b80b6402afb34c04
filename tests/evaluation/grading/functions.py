"""Functions that tests run in a worker process. This file imports little: a worker imports it too."""

import os
import signal
import sys
import time


def add(a: object, b: object) -> object:
    return a + b  # type: ignore[operator]


def pid(*_: object) -> int:
    return os.getpid()


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


def tower() -> int:
    """One operation in C that holds the interpreter's lock and takes minutes."""
    return len(str(3 ** (1 << 26)))


def exit_at_once() -> None:
    os._exit(3)


def leave() -> None:
    sys.exit(4)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def overflow(depth: int = 0) -> int:
    return overflow(depth + 1) + 1


def allocate(size: int) -> int:
    return len(bytearray(size))


def fail(text: str) -> None:
    raise ValueError(text)


class Odd(Exception):
    """Cannot be unpickled."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def fail_oddly() -> None:
    raise Odd(1, 2)


def nothing_to_pickle() -> object:
    return lambda: 0


def chatter() -> str:
    print("noise")
    print("noise", file=sys.stderr)
    return "quiet"


def echo(value: object) -> object:
    return value
