"""A user's own function that turns a row of any format into one of a known format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from lit_probsft.errors import UserError, near_matches


def import_row_function(path: str) -> Callable[[Mapping[str, Any]], Any]:
    """Import the function at an import path such as `my_rows.pubmedqa`.

    Raises:
        UserError: the module cannot be imported or has no such function.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError("row_function", f"expected an import path such as my_rows.pubmedqa, got {path!r}")
    try:
        module = import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise UserError(
            "row_function", f"cannot import {module_name!r} of {path!r}: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        hint = near_matches(name, [key for key, value in vars(module).items() if callable(value)])
        raise UserError("row_function", f"no function {name!r} in {module_name!r}.{hint}")
    checked: Callable[[Mapping[str, Any]], Any] = function
    return checked


def call_row_function(path: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the function at `path` makes of `row`.

    Raises:
        UserError: it cannot be imported, raises, or returns something other than a mapping.
    """
    function = import_row_function(path)
    try:
        result = function(row)
    except UserError as error:
        raise UserError("row_function", f"{error}") from error
    except Exception as error:  # the user's code
        raise UserError("row_function", f"{path} raised {type(error).__name__}: {error}") from error
    if not isinstance(result, Mapping):
        raise UserError(
            "row_function",
            f"expected {path} to return a mapping such as {{prompt, response}}, got {type(result).__name__}",
        )
    return result
