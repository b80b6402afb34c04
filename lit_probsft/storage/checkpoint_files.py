"""Checkpoints on disk: written beside their place and renamed, checked before they are believed, read without running
anything that they contain.

A checkpoint is a file, or a folder of slices (FSDP2, DeepSpeed) with a `manifest.json` that is written last and names
every file with its size and CRC-32, and has one of its own.
"""

from __future__ import annotations

import contextlib
import enum
import io
import json
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies.strategy import Strategy

from lit_probsft.errors import UserError
from lit_probsft.storage.atomic import atomic_write, partial_of, put_in_place, reason, remove, sync_file
from lit_probsft.storage.ranks import gather_objects

MANIFEST = "manifest.json"
_WRITER = re.compile("PytorchStreamWriter|inline_container")
"""In the messages of torch's writer."""
_CHUNK = 2**24


# --- writing


def write_file(content: Mapping[str, Any], path: Path) -> None:
    """A single-file checkpoint.

    Raises:
        OSError: it could not be written; what was at `path` is untouched.
    """
    with atomic_write(path) as partial, open(partial, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise OSError(0, writing_error(error)) from error
        file.flush()
        os.fsync(file.fileno())


class WholeFileIO(TorchCheckpointIO):
    """Lightning's reader and writer of single files, but for `write_file`, and without executing what it reads.

    A failure to write is kept in `failure` until somebody asks, so that the ranks, of which only one writes, can agree
    that it failed instead of waiting for each other.

    Args:
        argument: how the user named what is read.
    """

    def __init__(self, argument: str = "--resume") -> None:
        self.argument = argument
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, or remember why not."""
        try:
            write_file(checkpoint, Path(path))
        except OSError as error:
            self.failure = reason(error)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read with weights_only."""
        if Path(path).is_dir():
            raise UserError(
                self.argument,
                f"expected a single file, {path} is a folder that {format_of(Path(path))} wrote; "
                "continue with that strategy, or start from the model that `export` makes of it",
            )
        content = torch.load(path, map_location="cpu", weights_only=weights_only is not False, mmap=True)
        return dict(content)


def write_folder(strategy: Strategy, path: Path, kind: str, write: Callable[[Path], None]) -> None:
    """A checkpoint in slices; every rank calls this, on a file system that they share.

    Args:
        strategy: how the ranks talk to each other.
        path: the folder, the same on all ranks.
        kind: who can read it: `fsdp2` or `deepspeed`.
        write: puts this rank's part into the folder it is given.

    Raises:
        UserError: on all ranks alike, if one of them could not write; what was at `path` is untouched.
    """
    partial = begin_folder(strategy, path)
    failure: str | None = None
    try:
        partial.mkdir(parents=True, exist_ok=True)
        write(partial)
    except BaseException as error:  # torch's is no Exception
        failure = writing_error(error)
    finish_folder(strategy, path, kind, failure)


def begin_folder(strategy: Strategy, path: Path) -> Path:
    """Where the ranks write; what an earlier attempt has left there is gone."""
    partial = partial_of(path)
    if strategy.is_global_zero:
        with contextlib.suppress(OSError):
            remove(partial)
    strategy.barrier()
    return partial


def finish_folder(strategy: Strategy, path: Path, kind: str, failure: str | None) -> None:
    """Name the partial folder's files in its manifest and rename it; or remove it, if a rank has failed."""
    partial = partial_of(path)
    ranks, rank = _ranks(strategy)
    failures = gather_objects(failure)
    entries: dict[str, list[int]] = {}
    if not any(failures):
        try:
            files = sorted(file for file in partial.rglob("*") if file.is_file())
            for file in files[rank::ranks]:
                sync_file(file)
                entries[file.relative_to(partial).as_posix()] = [file.stat().st_size, _crc(file)]
        except OSError as error:
            failure = reason(error)
        failures = gather_objects(failure)
    parts = gather_objects(entries)
    if not any(failures) and strategy.is_global_zero:
        try:
            content = {"format": kind, "world_size": ranks, "files": {k: v for part in parts for k, v in part.items()}}
            (partial / MANIFEST).write_text(json.dumps({**content, "crc": _crc_of(content)}, indent=1))
            sync_file(partial / MANIFEST)
            put_in_place(partial, path)
        except OSError as error:
            failure = reason(error)
    failures = gather_objects(failure)
    if any(failures):
        if strategy.is_global_zero:
            with contextlib.suppress(OSError):
                remove(partial)
        raise not_written(path, next(failure for failure in failures if failure))


def not_written(path: Path, why: str) -> UserError:
    """The error of a checkpoint that could not be written, with what is left."""
    whole = newest_whole(path.parent)[0]
    left = f"the one before is whole: {whole}" if whole else "there is none before it"
    return UserError("checkpoint", f"{path} could not be written: {why}; {left}")


def writing_error(error: BaseException) -> str:
    """Why a checkpoint could not be written; what has nothing to do with writing is raised again."""
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException):  # collects those of all ranks
        first: Any = next(iter(error.failures.values()))
        return writing_error(first[0] if isinstance(first, tuple) else first)
    if isinstance(error, OSError):
        return reason(error)
    if isinstance(error, RuntimeError) and _WRITER.search(str(error)):  # torch's writer hides the system's error
        cause = error.__context__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        return reason(cause) if cause else f"the disk may be full ({reason(error)})"
    raise error


def _ranks(strategy: Strategy) -> tuple[int, int]:
    return int(getattr(strategy, "world_size", 1)), int(getattr(strategy, "global_rank", 0))


def _crc_of(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


# --- believing


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, read from its first byte to its last; None if it is as it was written."""
    try:
        if path.is_dir():
            return _folder_damage(path)
        if not path.is_file():
            return "it is not there"
        with zipfile.ZipFile(path) as archive:  # torch writes a CRC-32 with each record, and never looks at it
            broken = archive.testzip()
            # torch's reader takes a record that is marked as a folder for whatever lies in memory.
            marked = (info.filename for info in archive.infolist() if info.external_attr)
            broken = broken or next(marked, None)
        if broken is not None:
            return f"its record {broken} is damaged"
        with contextlib.suppress(pickle.UnpicklingError):  # whole, but refused when it is read
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # as torch's own reader sees it
        return None
    except Exception as error:  # zipfile raises many kinds: a flag, a version or a compression that it does not know
        return reason(error)


def _folder_damage(path: Path) -> str | None:
    if not (path / MANIFEST).is_file():
        return "its manifest is missing"
    manifest = _manifest(path)
    if not manifest:
        return "its manifest is damaged"
    for name, (size, _) in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"its file {name} is missing"
        if file.stat().st_size != size:
            return f"its file {name} has {file.stat().st_size} bytes instead of {size}"
    with ThreadPoolExecutor() as pool:  # a large model's slices are hundreds of GB
        found = pool.map(_crc, [path / name for name in manifest["files"]])
        for (name, (_, crc)), value in zip(manifest["files"].items(), found, strict=True):
            if value != crc:
                return f"its file {name} is damaged"
    return None


def format_of(path: Path) -> str:
    """Who wrote a checkpoint: `file`, `fsdp2` or `deepspeed`."""
    if not path.is_dir():
        return "file"
    return str(_manifest(path).get("format", "an unknown program"))


def world_size_of(path: Path) -> int | None:
    """How many ranks wrote a folder."""
    value = _manifest(path).get("world_size")
    return None if value is None else int(value)


def _manifest(path: Path) -> dict[str, Any]:
    """Empty if it is missing or not as it was written."""
    try:
        content = json.loads((path / MANIFEST).read_bytes())
        crc = content.pop("crc")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return dict(content) if crc == _crc_of(content) else {}


def steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run with the optimizer steps at which they were written, oldest first."""
    found = []
    for path in folder.glob("step-*.ckpt"):
        number = path.name.removeprefix("step-").removesuffix(".ckpt")
        if number.isdecimal():
            found.append((int(number), path))
    return sorted(found)


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint of a run, and what is wrong with those that are newer."""
    complaints: list[str] = []
    for _, path in reversed(steps(folder)):
        wrong = damage(path)
        if wrong is None:
            return path, complaints
        complaints.append(f"{path} is damaged: {wrong}")
    return None, complaints


# --- reading


def check_harmless(path: Path) -> None:
    """Refuse a folder whose pickled parts would do more than hold numbers: torch's and DeepSpeed's readers do not look.

    Raises:
        UserError: it names something else than plain data, tensors and the formats' own descriptions.
    """
    for file in sorted(path.rglob("*")):
        if file.is_symlink() and file.is_dir():  # which is not searched here, but would be read
            raise UserError("--resume", f"expected a checkpoint of plain data, {file} is a link to another folder")
        try:
            if file.name.endswith(".metadata"):  # a rank may have its own
                _check_metadata(file)
            elif file.suffix == ".pt":
                with torch.serialization.safe_globals(_deepspeed_classes()):
                    torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                "--resume",
                f"expected a checkpoint of plain data, {file} wants to run code when it is read: {_named_in(error)}",
            ) from error
        except Exception as error:  # of a file that is damaged, or in a format that cannot be checked
            raise UserError(
                "--resume", f"expected a whole checkpoint, {file} cannot be read: {reason(error)}"
            ) from error


def _named_in(error: pickle.UnpicklingError) -> str:
    """What a pickle wants to call; torch tells at length how to let it."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return named[1] if named else reason(error)


class _DescriptionsOnly(pickle.Unpickler):
    _KNOWN = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) in _PLAIN or isinstance(
            getattr(torch, name, None) if module == "torch" else None, torch.dtype
        ):
            return super().find_class(module, name)
        if module in self._KNOWN and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name}")


def _member(kind: Any, name: str) -> Any:
    """What early versions of Python 3.11 call `getattr` for: a member of an enumeration."""
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
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    metadata = _DescriptionsOnly(io.BytesIO(file.read_bytes())).load()
    for index, place in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            with open(file.parent / place.relative_path, "rb") as data:
                data.seek(place.offset)
                torch.load(io.BytesIO(data.read(place.length)), map_location="cpu", weights_only=True)


def _deepspeed_classes() -> list[Any]:
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError:
        return []
    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, (_member, "builtins.getattr")]
