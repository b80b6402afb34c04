"""Reading a pretrained model: what can be refused before it is read, and what others say then as one message."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError, first_line
from lit_probsft.storage.hub import missing_folder, refused_code

_PLACE = "model.model.model_name_or_path"


def check_place(place: str) -> None:
    """Refuse a file, and a folder that is not there.

    Raises:
        UserError: naming it, with names that are like it.
    """
    folder = Path(place).expanduser()
    if folder.is_file() or not place:
        raise UserError(_PLACE, f"expected a hub id or a folder, got {place!r}")
    local, hint = missing_folder(place)
    if local:
        raise UserError(_PLACE, f"expected a hub id or a folder, there is none at {str(folder)!r}.{hint}")


def check_complete(place: str, loaded: Mapping[str, Any]) -> None:
    """Refuse a model that lacks weights, which transformers would draw at random.

    Args:
        place: where it lies.
        loaded: what `from_pretrained` says about it.
    """
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(
            _PLACE,
            f"expected all weights of the model, {place!r} lacks {missing[0]}"
            f"{f' and {len(missing) - 1} more' * (len(missing) > 1)}",
        )


@contextlib.contextmanager
def report_load_errors(place: str, revision: str | None) -> Iterator[None]:
    """While a model is read from `place`, what goes wrong with its files is the user's to mend."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            _PLACE, f"expected weights and nothing else, {place!r} holds a pickle that wants to run code, or is damaged"
        ) from error
    except SafetensorError as error:
        raise UserError(_PLACE, f"expected whole weights, a file of {place!r} is damaged: {error}") from error
    except (OSError, ValueError, ImportError) as error:
        said = first_line(error)
        if said.startswith("Unrecognized configuration class"):
            said = "its architecture is no causal language model's"
        raise refused_code(error, "model.model.trust_remote_code", place, revision) or UserError(
            _PLACE, f"expected a hub id or a folder with a causal language model, got {place!r}: {said}"
        ) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UserError(
            _PLACE,
            f"expected weights of the shapes that config.json says, those of {place!r} differ "
            "(transformers says above which)",
        ) from error
    except AssertionError as error:
        raise UserError(_PLACE, f"expected a config.json that makes a model, got {place!r}: {error}") from error
