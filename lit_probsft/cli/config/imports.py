"""Imports of the classes that a configuration names."""

from __future__ import annotations

import sys
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


def import_path(kind: type) -> str:
    """The shortest import path of a class: that of the package which hands it on, if one does."""
    parts = kind.__module__.split(".")
    packages = (".".join(parts[:length]) for length in range(1, len(parts)))
    shortest = (name for name in packages if getattr(sys.modules.get(name), kind.__name__, None) is kind)
    return f"{next(shortest, kind.__module__)}.{kind.__qualname__}"


def _import_error(class_path: str, place: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    module = class_path.rpartition(".")[0]
    return UserError(place or class_path, f"cannot import {module}, which {class_path} names: {reason}")
