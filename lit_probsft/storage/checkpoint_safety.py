"""Refuses folder checkpoints that are of another format or would run code when they are loaded.

The readers of torch.distributed.checkpoint and DeepSpeed unpickle whatever they find, so every pickle is checked
first. Single files need no check: `torch.load(weights_only=True)` refuses by itself.
"""

from __future__ import annotations

import enum
import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from lit_probsft.errors import UserError, first_line
from lit_probsft.storage.checkpoint_files import format_of


def check_loadable(path: Path, expected: str) -> None:
    """Refuse a checkpoint that another strategy wrote, or that would run code.

    Args:
        path: a file or a folder.
        expected: the format, `fsdp2` or `deepspeed`.

    Raises:
        UserError: the checkpoint cannot be resumed from with this strategy.
    """
    found = format_of(path)
    if found != expected:
        described = "a single file" if found == "file" else f"a folder that {found} wrote"
        raise UserError(
            "--resume",
            f"expected a checkpoint that {expected} wrote, {path} is {described}; resume with the strategy that wrote "
            "it, or start a new run from its exported model",
        )
    check_harmless(path)


def check_harmless(path: Path, argument: str = "--resume") -> None:
    """Refuse a folder whose pickles name anything but plain data, tensors and the formats' own classes.

    Args:
        path: the folder.
        argument: names it in errors.

    Raises:
        UserError: the folder would run code, or cannot be checked.
    """
    for file in sorted(path.rglob("*")):
        if file.is_symlink() and file.is_dir():  # rglob does not enter it, but a reader would
            raise UserError(argument, f"expected a checkpoint of plain data, {file} is a link to another folder")
        try:
            if file.name.endswith(".metadata"):  # each rank may have one of its own
                _check_metadata(file)
            elif file.suffix == ".pt":
                with torch.serialization.safe_globals(_deepspeed_classes()):
                    torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                argument,
                f"expected a checkpoint of plain data, {file} would run code when it is loaded: {_named_in(error)}",
            ) from error
        except Exception as error:  # a damaged file, or a format that cannot be checked
            raise UserError(
                argument, f"expected an intact checkpoint, {file} cannot be read: {first_line(error)}"
            ) from error


def _named_in(error: pickle.UnpicklingError) -> str:
    """The name that a pickle would call; torch's message is long."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return named[1] if named else first_line(error)


class _MetadataUnpickler(pickle.Unpickler):
    """Loads the metadata of torch.distributed.checkpoint, and refuses any other class."""

    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        if (module, name) in _PLAIN or isinstance(
            getattr(torch, name, None) if module == "torch" else None, torch.dtype
        ):
            return super().find_class(module, name)
        if module in self._MODULES and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name}")


def _enum_member(kind: Any, name: str) -> Any:
    """Stands in for `getattr`, by which early versions of Python 3.11 pickle the members of an enumeration."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise pickle.UnpicklingError("builtins.getattr")
    return kind[name]


_PLAIN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


def _check_metadata(file: Path) -> None:
    """Check the metadata, and the pickled bytes among the shards that it describes."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    metadata = _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
    for index, part in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            with open(file.parent / part.relative_path, "rb") as data:
                data.seek(part.offset)
                torch.load(io.BytesIO(data.read(part.length)), map_location="cpu", weights_only=True)


def _deepspeed_classes() -> list[Any]:
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError:
        return []
    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, (_enum_member, "builtins.getattr")]
