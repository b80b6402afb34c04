"""A user's own function that turns a row of any format into one of a known format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lit_probsft.data.rows.imports import import_callable
from lit_probsft.errors import UserError


def import_row_function(path: str) -> Callable[[Mapping[str, Any]], Any]:
    """Import the function at an import path such as `my_rows.pubmedqa`.

    Raises:
        UserError: the module cannot be imported or has no such function.
    """
    return import_callable(path, "row_function", "function", "my_rows.pubmedqa")


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
