"""Checks around loading a pretrained model, and loading errors as one message."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError, first_line
from lit_probsft.storage.hub import missing_folder, refused_code

_ARGUMENT = "model.model.model_name_or_path"


def check_model_path(name_or_path: str) -> None:
    """Check that a model's name is a hub id or an existing folder.

    Raises:
        UserError: with similar names.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_file() or not name_or_path:
        raise UserError(_ARGUMENT, f"expected a hub id or a folder, got {name_or_path!r}")
    local, hint = missing_folder(name_or_path)
    if local:
        raise UserError(_ARGUMENT, f"the folder {str(folder)!r} does not exist.{hint}")


def check_complete(name_or_path: str, loaded: Mapping[str, Any]) -> None:
    """Check that no weights are missing; transformers would draw them at random.

    Args:
        name_or_path: hub id or folder of the model.
        loaded: the loading information that `from_pretrained` returns.
    """
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(
            _ARGUMENT,
            f"expected all weights of the model, but {name_or_path!r} lacks {missing[0]}"
            f"{f' and {len(missing) - 1} more' * (len(missing) > 1)}",
        )


@contextlib.contextmanager
def report_load_errors(name_or_path: str, revision: str | None) -> Iterator[None]:
    """Within this block, turn errors in a model's files into a UserError of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            _ARGUMENT, f"expected only weights, but {name_or_path!r} holds a pickle that runs code or is damaged"
        ) from error
    except SafetensorError as error:
        raise UserError(_ARGUMENT, f"a weights file of {name_or_path!r} is damaged: {error}") from error
    except (OSError, ValueError, ImportError) as error:
        reason = first_line(error)
        if reason.startswith("Unrecognized configuration class"):
            reason = "its architecture is not a causal language model"
        raise refused_code(error, "model.model.trust_remote_code", name_or_path, revision) or UserError(
            _ARGUMENT, f"expected a hub id or a folder with a causal language model, got {name_or_path!r}: {reason}"
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UserError(
            _ARGUMENT,
            f"the weights of {name_or_path!r} do not have the shapes in its config.json (the message of transformers "
            "above names them)",
        ) from error
    except AssertionError as error:
        raise UserError(_ARGUMENT, f"the config.json of {name_or_path!r} does not describe a model: {error}") from error
