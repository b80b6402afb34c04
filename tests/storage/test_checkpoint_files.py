"""Checkpoint files: they load as they were written, damage is noticed, and the newest intact one is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_probsft.errors import UserError
from lit_probsft.storage.checkpoint_files import MANIFEST, damage, format_of, newest_intact, steps, world_size_of
from lit_probsft.storage.checkpoint_writing import WholeFileIO, write_file, write_folder
from tests.storage.trees import SINGLE_PROCESS, empty_folder, folders, names, quick, read, write

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


@quick
@given(st.dictionaries(st.text(max_size=4), values, max_size=4), st.lists(st.integers(0, 3), max_size=3))
def test_a_file_loads_as_it_was_written(content: Any, shape: list[int]) -> None:
    tensor = torch.randn(shape)
    with empty_folder() as folder:
        write_file({**content, "tensor": tensor}, folder / "a.ckpt")
        assert [path.name for path in folder.iterdir()] == ["a.ckpt"]
        assert damage(folder / "a.ckpt") is None
        assert format_of(folder / "a.ckpt") == "file"
        found = WholeFileIO().load_checkpoint(folder / "a.ckpt")
    assert torch.equal(found.pop("tensor"), tensor)
    assert found == {name: value for name, value in content.items() if name != "tensor"}


def files_in(tree: Any, parent: str = "") -> dict[str, bytes]:
    """The files of a tree by their path."""
    found = {}
    for name, inner in tree.items():
        found |= {parent + name: inner} if isinstance(inner, bytes) else files_in(inner, f"{parent}{name}/")
    return found


harms: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "replaced by a folder": lambda path: (path.unlink(), path.mkdir()),
    "other bytes": lambda path: path.write_bytes(bytes(255 - byte for byte in path.read_bytes())),
}


@quick
@given(folders, folders | st.none(), st.sampled_from(["fsdp2", "deepspeed"]), st.sampled_from(sorted(harms)), st.data())
def test_a_folder_is_intact_while_all_its_files_are_as_written(
    tree: Any, old: Any, kind: str, harm: str, data: Any
) -> None:
    with empty_folder() as folder:
        path = folder / "step-3.ckpt"
        if old is not None:
            write(old, path)
            assert damage(path) is not None
        write_folder(SINGLE_PROCESS, path, kind, lambda partial: write(tree, partial))
        assert [p.name for p in folder.iterdir()] == [path.name]
        assert (damage(path), format_of(path), world_size_of(path)) == (None, kind, 1)
        found = read(path)
        assert json.loads(found.pop(MANIFEST))["files"].keys() == files_in(tree).keys()
        assert found == tree
        if candidates := sorted(name for name, content in files_in(tree).items() if content or harm != "other bytes"):
            victim = data.draw(st.sampled_from(candidates))
            harms[harm](path / victim)
            assert victim in str(damage(path))
            assert ("bytes instead of" in str(damage(path))) == (harm == "longer")
            assert newest_intact(folder)[0] is None


def test_an_error_while_writing_a_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "step-2.ckpt"
    for file in (tmp_path / "step-1.ckpt", path):
        write_folder(SINGLE_PROCESS, file, "fsdp2", lambda partial: write({"a": b"1"}, partial))
    before = read(tmp_path)

    def fail(partial: Path) -> None:
        write({"a": b"2", "b": b"3"}, partial)
        raise OSError(28, "No space left on device")

    message = rf"{path} could not be written: No space left on device; the previous checkpoint, {path}, is intact$"
    with pytest.raises(UserError, match=message):
        write_folder(SINGLE_PROCESS, path, "fsdp2", fail)
    assert read(tmp_path) == before


@quick
@given(st.binary(max_size=60), st.booleans())
def test_any_content_is_damaged_and_raises_no_error(content: bytes, as_folder: bool) -> None:
    with empty_folder() as folder:
        path = folder / "step-1.ckpt"
        write({MANIFEST: content} if as_folder else content, path)
        assert isinstance(damage(path), str)
        assert format_of(path) == ("an unknown program" if as_folder else "file")
        assert world_size_of(path) is None
        assert newest_intact(folder)[0] is None
    assert damage(path) == "it does not exist"


def test_damage_raises_no_error_whichever_bit_is_flipped(tmp_path: Path) -> None:
    """zipfile raises more kinds of errors than it documents, such as for an unknown flag or version."""
    path = tmp_path / "a.ckpt"
    write_file({"tensor": torch.arange(3.0)}, path)
    intact = path.read_bytes()
    # The central directory at the end, in which every bit has a meaning.
    for place in range(intact.index(b"PK\x01\x02"), len(intact)):
        flipped = bytearray(intact)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert isinstance(damage(path), str | None)


@quick
@given(st.dictionaries(st.integers(0, 10**9), st.booleans(), max_size=5), st.lists(names, max_size=3))
def test_steps_are_in_order_and_the_newest_intact_checkpoint_is_found(
    written: dict[int, bool], others: list[str]
) -> None:
    """`written` says for each step whether its checkpoint is intact. Other files are ignored."""
    with empty_folder() as folder:
        for other in others:
            (folder / f"step-x{other}.ckpt").touch()
            (folder / f"{other}.ckpt").touch()
            (folder / f".step-{other}.partial").touch()
        for step, intact in written.items():
            path = folder / f"step-{step:08d}.ckpt"
            if intact:
                write_folder(SINGLE_PROCESS, path, "fsdp2", lambda partial: write({"a": b"1"}, partial))
            else:
                write({"a": b"1"}, path)
        by_step = {step: path for step, path in steps(folder) if path.stem == f"step-{step:08d}"}
        assert list(by_step) == sorted(written)
        newest = max((step for step, intact in written.items() if intact), default=None)
        found, complaints = newest_intact(folder)
        assert found == (None if newest is None else by_step[newest])
        newer = [step for step in sorted(written, reverse=True) if newest is None or step > newest]
        assert [complaint.partition(" ")[0] for complaint in complaints] == [str(by_step[step]) for step in newer]


@pytest.mark.parametrize("name", ["step-².ckpt", "step-.ckpt", "step-1e3.ckpt", "step--1.ckpt", "step-1.ckpt.partial"])
def test_a_name_without_a_number_is_not_a_step(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert steps(tmp_path) == []
