"""Checkpoints on disk: their formats, names and checksums.

A checkpoint is a single file, or a folder of shards (FSDP2, DeepSpeed). A folder has a `manifest.json`, which is
written last and lists every file with its size and CRC-32, and has a CRC-32 of its own.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lit_probsft.errors import first_line
from lit_probsft.storage.atomic import read_object, sync_file

MANIFEST = "manifest.json"
METADATA = "meta.pt"
"""In a folder of FSDP2: everything but weights and optimizer states. The name is Lightning's."""
_CHUNK = 2**24


def steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run by the optimizer step at which they were written, oldest first."""
    found = []
    for path in folder.glob("step-*.ckpt"):
        number = path.name.removeprefix("step-").removesuffix(".ckpt")
        if number.isdecimal():
            found.append((int(number), path))
    return sorted(found)


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint of a run, and a line about each damaged one that is newer."""
    complaints: list[str] = []
    for _, path in reversed(steps(folder)):
        found = damage(path)
        if found is None:
            return path, complaints
        complaints.append(f"{path} is damaged: {found}")
    return None, complaints


def format_of(path: Path) -> str:
    """The format of a checkpoint: `file`, `fsdp2` or `deepspeed`."""
    if not path.is_dir():
        return "file"
    return str(_read_manifest(path).get("format", "an unknown program"))


def world_size_of(path: Path) -> int | None:
    """The number of ranks that wrote a folder."""
    value = _read_manifest(path).get("world_size")
    return None if value is None else int(value)


def other_folder(path: Path) -> str | None:
    """What a folder is that no checkpoint was ever written to, in words; None for all others."""
    if not path.is_dir() or path.suffix == ".ckpt" or any((path / name).exists() for name in (MANIFEST, METADATA)):
        return None
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return "a Hugging Face folder"
    if (path / "checkpoints").is_dir():
        return f"the folder of a run; its newest checkpoint is {path / 'checkpoints' / 'last.ckpt'}"
    return "another folder"


def damage(path: Path) -> str | None:
    """Read a checkpoint from its first byte to its last; return what is wrong with it, or None if it is intact."""
    try:
        if path.is_dir():
            return folder_damage(path)
        if not path.is_file():
            return "it does not exist"
        with zipfile.ZipFile(path) as archive:  # torch stores a CRC-32 with each record, but never checks it
            broken = archive.testzip()
            # If a record is marked as a folder, torch's reader returns uninitialized memory.
            marked = (info.filename for info in archive.infolist() if info.external_attr)
            broken = broken or next(marked, None)
        if broken is not None:
            return f"its record {broken} is damaged"
        with contextlib.suppress(pickle.UnpicklingError):  # intact, but refused when it is loaded
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # torch's own reader must accept it
        return None
    except Exception as error:  # zipfile raises many kinds, such as for an unknown flag, version or compression
        return first_line(error)


def folder_damage(path: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a folder that has a manifest, or None; without `contents`, only sizes are compared."""
    if not (path / MANIFEST).is_file():
        return "its manifest is missing"
    manifest = _read_manifest(path)
    if not manifest:
        return "its manifest is damaged"
    for name, (size, _) in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"its file {name} is missing"
        if file.stat().st_size != size:
            return f"its file {name} has {file.stat().st_size} bytes instead of {size}"
    if not contents:
        return None
    with ThreadPoolExecutor() as pool:  # the shards of a large model are hundreds of GB
        found = pool.map(_crc_of_file, [path / name for name in manifest["files"]])
        for (name, (_, crc)), value in zip(manifest["files"].items(), found, strict=True):
            if value != crc:
                return f"its file {name} is damaged"
    return None


def manifest_entry(file: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    return [file.stat().st_size, _crc_of_file(file)]


def write_manifest(folder: Path, kind: str, world_size: int, files: Mapping[str, list[int]]) -> None:
    """Describe a folder of shards.

    Args:
        folder: that the manifest is about.
        kind: the format, `fsdp2` or `deepspeed`.
        world_size: the number of ranks that wrote it.
        files: `manifest_entry` of each file, by its path within the folder.
    """
    content = {"format": kind, "world_size": world_size, "files": dict(files)}
    (folder / MANIFEST).write_text(json.dumps({**content, "crc": _crc_of_json(content)}, indent=1))
    sync_file(folder / MANIFEST)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder; empty if it is missing or damaged."""
    try:
        content = read_object(path / MANIFEST)
        crc = content.pop("crc")
    except (OSError, ValueError, KeyError):
        return {}
    return content if crc == _crc_of_json(content) else {}


def _crc_of_json(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _crc_of_file(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
