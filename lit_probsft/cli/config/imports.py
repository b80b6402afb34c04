"""Imports of the classes that a configuration names."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lit_probsft.errors import UserError


def import_class(class_path: str, place: str = "") -> Any:
    """The class or function with this import path; None if it does not exist.

    Args:
        class_path: such as `torch.optim.AdamW`.
        place: the option that names it, for errors; the path itself if it is empty.

    Raises:
        UserError: the module exists but cannot be imported.
    """
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (AttributeError, ValueError):
        return None
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            return None
        raise _import_error(class_path, place, error) from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise _import_error(class_path, place, error) from error


def _import_error(class_path: str, place: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    module = class_path.rpartition(".")[0]
    return UserError(place or class_path, f"cannot import {module}, which {class_path} names: {reason}")
