"""Imports of a user's own functions and classes by their import paths."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from lit_probsft.errors import UserError, near_matches


def import_callable(path: str, argument: str, kind: str, example: str) -> Callable[..., Any]:
    """Import the function or class at an import path such as `my_rows.pubmedqa`.

    Args:
        path: module and name, joined by a dot.
        argument: names it in errors.
        kind: `function` or `class`, for errors.
        example: an import path, for errors.

    Raises:
        UserError: the module cannot be imported or has no such name.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(argument, f"expected an import path such as {example}, got {path!r}")
    try:
        module = import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise UserError(
            argument, f"cannot import {module_name!r} of {path!r}: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        hint = near_matches(name, [key for key, value in vars(module).items() if callable(value)])
        raise UserError(argument, f"no {kind} {name!r} in {module_name!r}.{hint}")
    checked: Callable[..., Any] = found
    return checked
