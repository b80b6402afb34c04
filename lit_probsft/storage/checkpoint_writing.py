"""Writes checkpoints atomically: a single file, or a folder to which every rank writes its shards."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ParallelStrategy

from lit_probsft.errors import UserError, first_line
from lit_probsft.storage.atomic import atomic_write, partial_of, put_in_place, remove, sync_file
from lit_probsft.storage.checkpoint_files import format_of, manifest_entry, newest_intact, write_manifest
from lit_probsft.storage.ranks import gather_objects

_WRITER = re.compile("PytorchStreamWriter|inline_container")
"""Appears in the messages of torch's writer."""


def write_file(content: Mapping[str, Any], path: Path) -> None:
    """Write a single-file checkpoint.

    Raises:
        OSError: it could not be written; an earlier file at `path` is unchanged.
    """
    with atomic_write(path) as partial, open(partial, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise OSError(0, writing_error(error)) from error
        file.flush()
        os.fsync(file.fileno())


class WholeFileIO(TorchCheckpointIO):
    """Writes single-file checkpoints atomically, and loads them with `weights_only`.

    An error while writing is kept in `failure` until it is asked for: only one rank writes, and the ranks agree on the
    failure instead of waiting for each other.

    Args:
        argument: names the checkpoint in errors.
    """

    def __init__(self, argument: str = "--resume") -> None:
        self.argument = argument
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file; on an error, set `failure`."""
        try:
            write_file(checkpoint, Path(path))
        except OSError as error:
            self.failure = first_line(error)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load the file on the CPU, with `weights_only` unless that is False."""
        if Path(path).is_dir():
            raise UserError(
                self.argument,
                f"expected a single file, {path} is a folder that {format_of(Path(path))} wrote; resume with that "
                "strategy, or start a new run from its exported model",
            )
        content = torch.load(path, map_location="cpu", weights_only=weights_only is not False, mmap=True)
        return dict(content)


def write_folder(strategy: ParallelStrategy, path: Path, kind: str, write: Callable[[Path], None]) -> None:
    """Write a checkpoint of shards. Every rank calls this, and all ranks see the same file system.

    Args:
        strategy: connects the ranks.
        path: the folder, the same on all ranks.
        kind: the format, `fsdp2` or `deepspeed`.
        write: writes this rank's shards into the folder that it is given.

    Raises:
        UserError: one of the ranks could not write; raised on all ranks. An earlier folder at `path` is unchanged.
    """
    partial = begin_folder(strategy, path)
    failure: str | None = None
    try:
        partial.mkdir(parents=True, exist_ok=True)
        write(partial)
    except BaseException as error:  # CheckpointException is not an Exception
        failure = writing_error(error)
    finish_folder(strategy, path, kind, failure)


def begin_folder(strategy: ParallelStrategy, path: Path) -> Path:
    """The partial folder that the ranks write to, without what an earlier attempt left there."""
    partial = partial_of(path)
    if strategy.is_global_zero:
        with contextlib.suppress(OSError):
            remove(partial)
    strategy.barrier()
    return partial


def finish_folder(strategy: ParallelStrategy, path: Path, kind: str, failure: str | None) -> None:
    """Write the manifest of the partial folder and rename it to `path`, or remove it if a rank has failed.

    Args:
        strategy: as in `write_folder`.
        path: as in `write_folder`.
        kind: as in `write_folder`.
        failure: why this rank could not write its shards.
    """
    partial = partial_of(path)
    failures = gather_objects(failure)
    entries: dict[str, list[int]] = {}
    if not any(failures):
        try:
            files = sorted(file for file in partial.rglob("*") if file.is_file())
            for file in files[strategy.global_rank :: strategy.world_size]:
                sync_file(file)
                entries[file.relative_to(partial).as_posix()] = manifest_entry(file)
        except OSError as error:
            failure = first_line(error)
        failures = gather_objects(failure)
    parts = gather_objects(entries)
    if not any(failures) and strategy.is_global_zero:
        try:
            write_manifest(partial, kind, strategy.world_size, {k: v for part in parts for k, v in part.items()})
            put_in_place(partial, path)
        except OSError as error:
            failure = first_line(error)
    failures = gather_objects(failure)
    if any(failures):
        if strategy.is_global_zero:
            with contextlib.suppress(OSError):
                remove(partial)
        raise not_written(path, next(failure for failure in failures if failure))


def not_written(path: Path, why: str) -> UserError:
    """The error of a checkpoint that could not be written; names the previous one."""
    previous = newest_intact(path.parent)[0]
    left = f"the previous checkpoint, {previous}, is intact" if previous else "there is no previous checkpoint"
    return UserError("checkpoint", f"{path} could not be written: {why}; {left}")


def writing_error(error: BaseException) -> str:
    """Why a checkpoint could not be written. Raises errors that have another cause again."""
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException):  # holds the errors of all ranks
        first: Any = next(iter(error.failures.values()))
        return writing_error(first[0] if isinstance(first, tuple) else first)
    if isinstance(error, OSError):
        return first_line(error)
    if isinstance(error, RuntimeError) and _WRITER.search(str(error)):  # torch's writer hides the OSError
        cause = error.__context__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        return first_line(cause) if cause else f"the disk may be full ({first_line(error)})"
    raise error
