"""Reads folders of adapters as peft writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_probsft.errors import UserError
from lit_probsft.storage.atomic import reason

if TYPE_CHECKING:
    from torch import Tensor


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of a folder of adapters."""


def is_adapter_folder(path: str | Path) -> bool:
    """Does it hold adapters in place of a model?"""
    return (Path(path) / CONFIG).is_file()


def adapters_at(place: str, revision: str | None = None) -> Path | None:
    """The folder of the adapters that a hub id or a folder holds in place of a model, None if it holds none.

    Args:
        place: hub id or folder.
        revision: branch, tag or commit on the hub, from which their files are fetched.
    """
    from transformers.utils import cached_file

    if Path(place).expanduser().exists():
        return Path(place) if is_adapter_folder(place) else None
    found = []
    for name in (CONFIG, WEIGHTS):
        try:
            found.append(cached_file(place, name, revision=revision or "main"))
        except (OSError, ValueError):  # reading it as a model, or its weights, will say what is wrong
            break
    return Path(found[0]).parent if found and found[0] else None


def read_config(folder: str | Path, argument: str) -> dict[str, Any]:
    """The fields of `adapter_config.json`.

    Raises:
        UserError: it is not there or not LoRA's, or asks for what is not done here, by name.
    """
    path = Path(folder) / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            argument, f"expected a folder of adapters with {CONFIG} and {WEIGHTS}, got {str(folder)!r}: {reason(error)}"
        ) from error
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        kind = content.get("peft_type") if isinstance(content, dict) else None
        raise UserError(argument, f"expected adapters of peft's type LORA, {str(folder)!r} holds {kind}")
    usual: dict[str, Any] = {"bias": "none", "lora_bias": False}
    usual |= dict.fromkeys(("rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices"))
    for field, value in usual.items():
        if (content.get(field) or value) != value:
            raise UserError(argument, f"expected adapters without {field}, {str(folder)!r} has {content[field]!r}")
    start = content.get("init_lora_weights", True)
    if isinstance(start, str) and start not in ("gaussian", "orthogonal"):  # the base was changed along with them
        raise UserError(
            argument, f"expected adapters of an unchanged base, {str(folder)!r} has init_lora_weights {start}"
        )
    return content


def read_weights(folder: str | Path, argument: str) -> dict[str, Tensor]:
    """By the names that peft stores.

    Raises:
        UserError: they are not there, not in safetensors' format, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(argument, f"expected adapters in {path}, which cannot be read: {reason(error)}") from error
