"""Reads adapter folders in peft's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_probsft.errors import UserError, first_line
from lit_probsft.storage.atomic import read_object

if TYPE_CHECKING:
    from torch import Tensor


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of an adapter folder."""


def is_adapter_folder(path: str | Path) -> bool:
    """Whether a folder holds adapters instead of a model."""
    return (Path(path) / CONFIG).is_file()


def adapters_at(place: str, revision: str | None = None) -> Path | None:
    """The local folder of the adapters that a hub id or a folder holds instead of a model; None for a model.

    Args:
        place: hub id or folder.
        revision: branch, tag or commit on the hub.
    """
    from transformers.utils import cached_file

    if Path(place).expanduser().exists():
        return Path(place) if is_adapter_folder(place) else None
    found = []
    for name in (CONFIG, WEIGHTS):
        try:
            found.append(cached_file(place, name, revision=revision or "main"))
        except (OSError, ValueError):  # reported when the model or the weights are loaded
            break
    return Path(found[0]).parent if found and found[0] else None


def read_config(folder: str | Path, argument: str) -> dict[str, Any]:
    """The fields of `adapter_config.json`.

    Args:
        folder: of the adapters.
        argument: names the folder in errors.

    Raises:
        UserError: the file is missing, is not for LoRA, or asks for something that is not supported.
    """
    path = Path(folder) / CONFIG
    try:
        content = read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(
            argument,
            f"expected a folder of adapters with {CONFIG} and {WEIGHTS}, got {str(folder)!r}: {first_line(error)}",
        ) from error
    if content.get("peft_type") != "LORA":
        kind = content.get("peft_type") if isinstance(content, dict) else None
        raise UserError(argument, f"expected adapters of peft's type LORA, {str(folder)!r} holds {kind}")
    supported: dict[str, Any] = {"bias": "none", "lora_bias": False}
    supported |= dict.fromkeys(("rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices"))
    for field, value in supported.items():
        if (content.get(field) or value) != value:
            raise UserError(argument, f"expected adapters without {field}, {str(folder)!r} has {content[field]!r}")
    start = content.get("init_lora_weights", True)
    if isinstance(start, str) and start not in ("gaussian", "orthogonal"):  # such as pissa, which changes the base
        raise UserError(
            argument, f"expected adapters of an unchanged base, {str(folder)!r} has init_lora_weights {start}"
        )
    return content


def read_weights(folder: str | Path, argument: str) -> dict[str, Tensor]:
    """The weights of the adapters, by the names that peft gives them.

    Raises:
        UserError: the file is missing, damaged or not in the safetensors format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(argument, f"expected adapters in {path}, which cannot be read: {first_line(error)}") from error
