"""argparse with our error messages."""

from __future__ import annotations

import argparse
import errno
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from typing_extensions import override

from lit_probsft.errors import UserError, first_line, near_matches


def path_or_name(text: str) -> str:
    """The text of an argument that may be a path, if the file system can look for it. A `type` for argparse."""
    try:
        os.lstat(text)
    except (OSError, ValueError) as error:  # ValueError for a null character
        if not isinstance(error, OSError) or error.errno == errno.ENAMETOOLONG:
            problem = f"expected a path, got {text[:40]!r}...: {first_line(error)}"
            raise argparse.ArgumentTypeError(problem) from error
    return text


def path_argument(text: str) -> Path:
    """`path_or_name` as a path. Shells leave the `~` of `--out=~/x` as it is."""
    return Path(os.path.expanduser(path_or_name(text)))


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UserError` and accepts no abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    @override
    def error(self, message: str) -> NoReturn:
        usage = f" (usage: {' '.join(self.format_usage().split()[1:])})"
        if match := re.fullmatch(r"the following arguments are required: (.*)", message):
            raise UserError(match[1], f"expected a value{' for each' * (', ' in match[1])}, got none{usage}")
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            flags = [flag for action in self._actions for flag in action.option_strings]
            is_flag = match[1].startswith("-")
            problem = f"unknown flag.{near_matches(match[1], flags)}" if is_flag else "unexpected argument"
            raise UserError(match[1], f"{problem}{usage}")
        if match := re.fullmatch(r"argument (.+?): expected one argument", message):
            raise UserError(match[1], "expected a value, got none")
        if match := re.fullmatch(r"argument (.+?): (expected a path, .*)", message):
            raise UserError(match[1], match[2])
        if match := re.fullmatch(r"argument (.+?): invalid int value: (.*)", message):
            raise UserError(match[1], f"expected a whole number, got {match[2]}")
        if match := re.fullmatch(r"argument (.+?): invalid choice: '(.*)' \(choose from (.*)\)", message):
            choices = match[3].replace("'", "").split(", ")
            argument = match[1] if match[1].startswith("-") else "COMMAND"
            raise UserError(
                argument, f"expected one of {', '.join(choices)}, got {match[2]!r}.{near_matches(match[2], choices)}"
            )
        raise UserError(self.prog.split()[-1], f"{message}{usage}")
