"""Reads checkpoints of any format without the strategy that wrote them."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from lit_probsft.errors import UserError, first_line
from lit_probsft.storage.checkpoint_files import METADATA, damage, format_of, other_folder
from lit_probsft.storage.checkpoint_safety import check_harmless


def read_content(path: Path, argument: str) -> dict[str, Any]:
    """The content of a checkpoint, with the whole weights under `state_dict`. Runs no code from the checkpoint.

    Args:
        path: a file or a folder.
        argument: names the checkpoint in errors.

    Raises:
        UserError: the checkpoint is damaged, would run code, or cannot be read, or the folder is something else.
    """
    if (kind := other_folder(path)) is not None:
        raise UserError(argument, f"expected a checkpoint, {path} is {kind}")
    if (found := damage(path)) is not None:
        raise UserError(argument, f"expected an intact checkpoint, {path} is damaged: {found}")
    try:
        if not path.is_dir():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return content if isinstance(content, dict) else {}
        check_harmless(path, argument)
        return _read_deepspeed(path, argument) if format_of(path) == "deepspeed" else _read_shards(path)
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        raise UserError(
            argument, f"expected a checkpoint written by `lit_probsft fit`, {path} cannot be read: {first_line(error)}"
        ) from error


def _read_shards(path: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = FileSystemReader(path).read_metadata().state_dict_metadata
    weights = {
        name.removeprefix("state_dict."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
    }
    load({"state_dict": weights}, checkpoint_id=path, no_dist=True)
    return {**torch.load(path / METADATA, map_location="cpu", weights_only=True), "state_dict": weights}


def _read_deepspeed(path: Path, argument: str) -> dict[str, Any]:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint, get_model_state_files
    except ImportError as error:
        raise UserError(
            argument, f'{path} was written by DeepSpeed, which is not installed (pip install "lit_probsft[deepspeed]")'
        ) from error
    first = get_model_state_files(str(path / "checkpoint"))[0]
    content = torch.load(first, map_location="cpu", weights_only=False, mmap=True)  # check_harmless has checked it
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its progress
        weights = get_fp32_state_dict_from_zero_checkpoint(str(path), tag="checkpoint")
    return {**content, "state_dict": weights}
