"""What is written is whole or not there, what is damaged is noticed, and nothing that is read is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorProperties
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lit_probsft.cli.config.checks import read_checkpoint
from lit_probsft.errors import UserError
from lit_probsft.model.sources import PretrainedCausalLM
from lit_probsft.run.export import export_checkpoint
from lit_probsft.storage.atomic import atomic_write, link, partial_of, recover, remove, tidy
from lit_probsft.storage.checkpoint_files import (
    MANIFEST,
    WholeFileIO,
    check_harmless,
    damage,
    format_of,
    newest_whole,
    steps,
    world_size_of,
    write_file,
    write_folder,
)
from tests import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning"),
]

quick = settings(max_examples=25, deadline=None)

ONE: Any = SimpleNamespace(is_global_zero=True, barrier=lambda: None)
"""A strategy of one process."""

# --- trees of files: bytes, or a folder by name

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..", MANIFEST) and len(name.encode()) < 100
)
files = st.binary(max_size=40)
folders = st.recursive(
    st.dictionaries(names, files, max_size=3),
    lambda inner: st.dictionaries(names, inner | files, max_size=3),
    max_leaves=6,
)
trees = files | folders


def write(tree: Any, path: Path) -> None:
    if isinstance(tree, bytes):
        path.write_bytes(tree)
        return
    path.mkdir(exist_ok=True)
    for name, inner in tree.items():
        write(inner, path / name)


def read(path: Path) -> Any:
    """None where nothing is."""
    if path.is_dir():
        return {inner.name: read(inner) for inner in path.iterdir()}
    return path.read_bytes() if path.exists() else None


@contextmanager
def empty() -> Iterator[Path]:
    """A folder for one example of many."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# --- beside


@quick
@given(trees, trees | st.none(), trees | st.none())
def test_what_is_written_beside_appears_whole_and_at_once(new: Any, old: Any, leftover: Any) -> None:
    """Whatever was at its place, or was left there half-written; but a folder is not put in the place of a file."""
    refused = isinstance(new, dict) and isinstance(old, bytes)
    with empty() as folder:
        target = folder / "a" / "target"
        target.parent.mkdir()
        for tree, path in ((old, target), (leftover, partial_of(target))):
            if tree is not None:
                write(tree, path)
        with pytest.raises(NotADirectoryError) if refused else nullcontext(), atomic_write(target) as partial:
            assert not os.path.lexists(partial)
            write(new, partial)
            assert read(target) == old
        assert read(folder) == {"a": {"target": old if refused else new}}


class Wild(BaseException):
    """No Exception, as KeyboardInterrupt is none."""


@quick
@given(
    trees | st.none(), trees | st.none(), st.sampled_from([OSError, ValueError, KeyboardInterrupt, SystemExit, Wild])
)
def test_what_fails_leaves_what_was_there(half: Any, old: Any, kind: type[BaseException]) -> None:
    with empty() as folder:
        target, before = folder / "target", {} if old is None else {"target": old}
        if old is not None:
            write(old, target)
        with pytest.raises(kind), atomic_write(target) as partial:
            if half is not None:
                write(half, partial)
            raise kind
        assert read(folder) == before


@quick
@given(trees | st.none())
def test_a_writer_that_writes_nothing_leaves_what_was_there(old: Any) -> None:
    with empty() as folder:
        target, before = folder / "target", {} if old is None else {"target": old}
        if old is not None:
            write(old, target)
        with pytest.raises(FileNotFoundError), atomic_write(target):
            pass
        assert read(folder) == before


@quick
@given(trees, folders, st.booleans())
def test_a_folder_that_a_crash_left_aside_is_there_again(new: Any, old: Any, fails: bool) -> None:
    """The crash came between the two renames; the next writer of that name fails, or does not."""
    with empty() as folder:
        target = folder / "target"
        write(old, folder / ".target.old")
        write(new, partial_of(target))
        try:
            with atomic_write(target) as partial:
                assert read(target) == old
                write(new, partial)
                if fails:
                    raise Wild
        except Wild:
            assert read(folder) == {"target": old}
        else:
            assert read(folder) == {"target": new}


@quick
@given(trees | st.none(), folders)
def test_only_a_missing_folder_is_recovered(there: Any, aside: Any) -> None:
    with empty() as folder:
        if there is not None:
            write(there, folder / "target")
        write(aside, folder / ".target.old")
        recover(folder / "target")
        assert read(folder / "target") == (aside if there is None else there)


@quick
@given(st.dictionaries(names, trees, max_size=4), st.dictionaries(names, trees, max_size=4))
def test_tidy_removes_what_is_under_way_and_nothing_else(kept: Any, doomed: Any) -> None:
    kept = {name: tree for name, tree in kept.items() if not (name[0] == "." and Path(name).suffix)}
    endings = ("partial", "old", "deleted")
    with empty() as folder:
        write(kept, folder)
        for index, tree in enumerate(doomed.values()):
            write(tree, folder / f".{index}.ckpt.{endings[index % 3]}")
        tidy(folder)
        assert read(folder) == kept


@quick
@given(st.dictionaries(names, trees, min_size=1, max_size=3), st.data())
def test_remove_takes_one_name_and_follows_no_link(tree: Any, data: Any) -> None:
    with empty() as folder:
        inside = folder / "inside"
        write(tree, inside)
        (folder / "link").symlink_to("inside")
        remove(folder / "link")
        assert read(folder) == {"inside": tree}
        name = data.draw(st.sampled_from(sorted(tree)))
        remove(inside / name)
        assert read(inside) == {other: what for other, what in tree.items() if other != name}
        remove(inside / name)


# --- second names


@quick
@given(st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=4))
def test_a_second_name_stands_for_its_last_target(targets: list[str]) -> None:
    """Files and folders in any order, the same one twice, and nothing else is left."""
    content: dict[str, Any] = {"one": b"1", "two": {"a": b"2"}, "three": b"3", "four": {"b": b"4"}}
    with empty() as folder:
        write(content, folder)
        for target in targets:
            link(folder / "last", folder / target)
            assert read(folder) == {**content, "last": content[target]}


def test_the_second_name_of_a_file_outlives_the_first(tmp_path: Path) -> None:
    write({"step": b"1", "folder": {"a": b"2"}}, tmp_path)
    link(tmp_path / "last", tmp_path / "step")
    remove(tmp_path / "step")
    assert (tmp_path / "last").read_bytes() == b"1"
    # That of a folder goes with its neighbour when both are moved.
    link(tmp_path / "last", tmp_path / "folder")
    (tmp_path / "moved").mkdir()
    for name in ("folder", "last"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert read(tmp_path / "moved/last") == {"a": b"2"}


def test_where_files_have_one_name_only_the_second_is_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    write({"a": b"1", "b": b"2"}, tmp_path)
    for name in ("a", "b"):
        link(tmp_path / "last", tmp_path / name)
    assert os.readlink(tmp_path / "last") == "b"
    assert read(tmp_path) == {"a": b"1", "b": b"2", "last": b"2"}


# --- checkpoints

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


@quick
@given(st.dictionaries(st.text(max_size=4), values, max_size=4), st.lists(st.integers(0, 3), max_size=3))
def test_a_file_comes_back_as_it_was_written(content: Any, shape: list[int]) -> None:
    tensor = torch.randn(shape)
    with empty() as folder:
        write_file({**content, "tensor": tensor}, folder / "a.ckpt")
        assert [path.name for path in folder.iterdir()] == ["a.ckpt"]
        assert damage(folder / "a.ckpt") is None
        assert format_of(folder / "a.ckpt") == "file"
        found = WholeFileIO().load_checkpoint(folder / "a.ckpt")
    assert torch.equal(found.pop("tensor"), tensor)
    assert found == {name: value for name, value in content.items() if name != "tensor"}


def paths(tree: Any, above: str = "") -> dict[str, bytes]:
    """The files of a folder, by their path within it."""
    found = {}
    for name, inner in tree.items():
        found |= {above + name: inner} if isinstance(inner, bytes) else paths(inner, f"{above}{name}/")
    return found


harms: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
    "other bytes": lambda path: path.write_bytes(bytes(255 - byte for byte in path.read_bytes())),
}


@quick
@given(folders, folders | st.none(), st.sampled_from(["fsdp2", "deepspeed"]), st.sampled_from(sorted(harms)), st.data())
def test_a_folder_is_believed_as_long_as_all_its_files_are_as_written(
    tree: Any, old: Any, kind: str, harm: str, data: Any
) -> None:
    with empty() as folder:
        path = folder / "step-3.ckpt"
        if old is not None:
            write(old, path)
            assert damage(path) is not None
        write_folder(ONE, path, kind, lambda partial: write(tree, partial))
        assert [p.name for p in folder.iterdir()] == [path.name]
        assert (damage(path), format_of(path), world_size_of(path)) == (None, kind, 1)
        found = read(path)
        assert json.loads(found.pop(MANIFEST))["files"].keys() == paths(tree).keys()
        assert found == tree
        if candidates := sorted(name for name, content in paths(tree).items() if content or harm != "other bytes"):
            victim = data.draw(st.sampled_from(candidates))
            harms[harm](path / victim)
            assert victim in str(damage(path))
            assert ("bytes instead of" in str(damage(path))) == (harm == "longer")
            assert newest_whole(folder)[0] is None


def test_a_folder_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "step-2.ckpt"
    for file in (tmp_path / "step-1.ckpt", path):
        write_folder(ONE, file, "fsdp2", lambda partial: write({"a": b"1"}, partial))
    before = read(tmp_path)

    def fail(partial: Path) -> None:
        write({"a": b"2", "b": b"3"}, partial)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"step-2\.ckpt could not .*: No space left .* is whole: .*step-2\.ckpt"):
        write_folder(ONE, path, "fsdp2", fail)
    assert read(tmp_path) == before


@quick
@given(st.binary(max_size=60), st.booleans())
def test_whatever_lies_there_has_a_damage_and_no_error(content: bytes, as_folder: bool) -> None:
    with empty() as folder:
        path = folder / "step-1.ckpt"
        write({MANIFEST: content} if as_folder else content, path)
        assert isinstance(damage(path), str)
        assert format_of(path) == ("an unknown program" if as_folder else "file")
        assert world_size_of(path) is None
        assert newest_whole(folder)[0] is None
    assert damage(path) == "it is not there"


def test_no_bit_of_a_file_makes_the_look_at_it_fail(tmp_path: Path) -> None:
    """zipfile raises more kinds of errors than it documents: a flag or a version that it does not know."""
    path = tmp_path / "a.ckpt"
    write_file({"tensor": torch.arange(3.0)}, path)
    whole = path.read_bytes()
    # The directory at the end, of which every bit has a meaning.
    for place in range(whole.index(b"PK\x01\x02"), len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert isinstance(damage(path), str | None)


@quick
@given(st.dictionaries(st.integers(0, 10**9), st.booleans(), max_size=5), st.lists(names, max_size=3))
def test_steps_are_in_order_and_the_newest_whole_one_is_found(written: dict[int, bool], others: list[str]) -> None:
    """By step: is it whole? Beside them lies anything."""
    with empty() as folder:
        for other in others:
            (folder / f"step-x{other}.ckpt").touch()
            (folder / f"{other}.ckpt").touch()
            (folder / f".step-{other}.partial").touch()
        for step, whole in written.items():
            path = folder / f"step-{step:08d}.ckpt"
            if whole:
                write_folder(ONE, path, "fsdp2", lambda partial: write({"a": b"1"}, partial))
            else:
                write({"a": b"1"}, path)
        there = {step: path for step, path in steps(folder) if path.stem == f"step-{step:08d}"}
        assert list(there) == sorted(written)
        newest = max((step for step, whole in written.items() if whole), default=None)
        found, complaints = newest_whole(folder)
        assert found == (None if newest is None else there[newest])
        newer = [step for step in sorted(written, reverse=True) if newest is None or step > newest]
        assert [complaint.partition(" ")[0] for complaint in complaints] == [str(there[step]) for step in newer]


@pytest.mark.parametrize("name", ["step-².ckpt", "step-.ckpt", "step-1e3.ckpt", "step--1.ckpt", "step-1.ckpt.partial"])
def test_a_name_without_a_number_is_no_step(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert steps(tmp_path) == []


# --- nothing that is read is run


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickled(value: Any, how: str) -> bytes:
    buffer = io.BytesIO()
    if how == "plain":
        pickle.dump(value, buffer)
    else:
        torch.save(value, buffer, _use_new_zipfile_serialization=how == "zip")
    return buffer.getvalue()


HOW = ["zip", "legacy", "plain"]


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[Evil]:
    """What must not be run; it would be, by whoever does not look."""
    evil = Evil(tmp_path / "was here")
    yield evil
    assert not evil.path.exists()
    torch.load(io.BytesIO(pickled({"a": evil}, "zip")), weights_only=False)
    assert evil.path.exists()


@pytest.mark.parametrize("how", HOW)
def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, evil: Evil, how: str) -> None:
    path = tmp_path / "step-1.ckpt"
    path.write_bytes(pickled({"state_dict": {}, "lit_probsft": evil}, how))
    with pytest.raises(UserError, match="--resume: expected a whole checkpoint"):
        read_checkpoint(path, "--resume", None)
    with pytest.raises(UserError, match="CKPT: expected a "):
        export_checkpoint(path, tmp_path / "out")
    for weights_only in (None, True):
        with pytest.raises((pickle.UnpicklingError, RuntimeError)):
            WholeFileIO().load_checkpoint(path, weights_only=weights_only)
    assert not (tmp_path / "out").exists()


def slices(path: Path, **more: Any) -> Path:
    """A checkpoint of FSDP2, as one process writes it."""

    def write_slices(partial: Path) -> None:
        save({"state_dict": {"model.w": torch.ones(3)}, **more}, checkpoint_id=partial, no_dist=True)
        torch.save({"lit_probsft": {}}, partial / "meta.pt")

    write_folder(ONE, path, "fsdp2", write_slices)
    return path


def parts(path: Path) -> Path:
    """A checkpoint of DeepSpeed, as far as it is looked at."""

    def write_parts(partial: Path) -> None:
        (partial / "checkpoint").mkdir()
        torch.save({"module": {"w": torch.ones(3)}}, partial / "checkpoint/mp_rank_00_model_states.pt")

    write_folder(ONE, path, "deepspeed", write_parts)
    return path


def resealed(path: Path) -> None:
    """With a manifest that vouches for what was put in, as whoever did so would see to."""
    kind, old = format_of(path), path.with_name("old")
    shutil.move(path, old)
    (old / MANIFEST).unlink()
    write_folder(ONE, path, kind, lambda partial: shutil.copytree(old, partial, dirs_exist_ok=True, symlinks=True))
    assert damage(path) is None


def assert_refused(path: Path, words: str) -> None:
    resealed(path)
    with pytest.raises(UserError, match=f"--resume: {words}") as caught:
        check_harmless(path)
    assert str(caught.value).isprintable()
    with pytest.raises(UserError, match=f"CKPT: {words}"):
        export_checkpoint(path, path.parent / "out")
    assert not (path.parent / "out").exists()


def test_what_our_strategies_write_is_harmless(tmp_path: Path) -> None:
    optimizer = {"state": {"w": {"step": torch.ones(()), "exp_avg": torch.ones(3, dtype=torch.bfloat16)}}, "lr": 1e-3}
    check_harmless(slices(tmp_path / "a", optimizer_0=optimizer))
    check_harmless(parts(tmp_path / "b"))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["meta.pt", "checkpoint/mp_rank_00_model_states.pt", "checkpoint/zero_pp_rank_0.pt"])
def test_a_part_that_wants_to_run_code_is_refused(tmp_path: Path, evil: Evil, name: str, how: str) -> None:
    path = slices(tmp_path / "c") if name == "meta.pt" else parts(tmp_path / "c")
    (path / name).write_bytes(pickled({"module": evil}, how))
    words = "checkpoint of plain data, .* wants to run code" if how == "zip" else "whole checkpoint, .* cannot be read"
    assert_refused(path, f"expected a {words}")


@pytest.mark.parametrize("name", [".metadata", "__0.metadata", "__17.metadata"])
def test_a_description_that_wants_to_run_code_is_refused(tmp_path: Path, evil: Evil, name: str) -> None:
    """A rank's own is read where there is none for all."""
    path = slices(tmp_path / "c")
    metadata = FileSystemReader(path).read_metadata()
    metadata.planner_data = evil
    (path / ".metadata").unlink()
    (path / name).write_bytes(pickle.dumps(metadata))
    assert_refused(path, "expected a checkpoint of plain data, .* wants to run code")


FILESYSTEM = "torch.distributed.checkpoint.filesystem"
NAMES = {
    "a function": ("os", "mkdir"),
    "a builtin": ("builtins", "eval"),
    "what a module that may be named has imported": (FILESYSTEM, "Path"),
    "a module that it has imported": (FILESYSTEM, "os"),
    "a function within that": (FILESYSTEM, "os.mkdir"),
    "a method": ("torch.distributed.checkpoint.metadata", "Metadata.__init__.__globals__"),
    "what is no number type of torch": ("torch", "load"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_description_may_name_nothing_but_descriptions(tmp_path: Path, evil: Evil, name: str) -> None:
    module, function = NAMES[name]
    path = slices(tmp_path / "c")
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, function))
    call = b"\x80\x04" + words + b"\x93\x8c" + bytes([len(str(evil.path))]) + str(evil.path).encode() + b"\x85R."
    (path / ".metadata").write_bytes(call)
    assert_refused(path, "expected a checkpoint of plain data, .* wants to run code")


def test_bytes_among_the_slices_that_want_to_run_code_are_refused(tmp_path: Path, evil: Evil) -> None:
    """What is no tensor lies pickled among them, and torch unpickles it without looking."""
    path = slices(tmp_path / "c", optimizer_0=evil)
    assert_refused(path, "expected a checkpoint of plain data, .* wants to run code")
    probe = slices(tmp_path / "d", optimizer_0=Evil(tmp_path / "run by torch"))
    load({"optimizer_0": {}}, checkpoint_id=probe, no_dist=True)
    assert (tmp_path / "run by torch").exists()


def test_a_link_to_a_folder_elsewhere_is_refused(tmp_path: Path, evil: Evil) -> None:
    """It would be read, but not be searched."""
    path = parts(tmp_path / "c")
    shutil.move(path / "checkpoint", tmp_path / "elsewhere")
    (tmp_path / "elsewhere/mp_rank_00_model_states.pt").write_bytes(pickled({"module": evil}, "zip"))
    (path / "checkpoint").symlink_to(tmp_path / "elsewhere")
    assert_refused(path, "expected a checkpoint of plain data, .* is a link")


@pytest.mark.parametrize("how", HOW)
def test_a_model_that_wants_to_run_code_is_refused(tmp_path: Path, evil: Evil, how: str) -> None:
    model = tiny.model()
    model.config.save_pretrained(tmp_path / "model")
    (tmp_path / "model/pytorch_model.bin").write_bytes(pickled({**model.state_dict(), "evil": evil}, how))
    with pytest.raises(UserError, match=r"model\.model\.model_name_or_path: .*code") as caught:
        PretrainedCausalLM(str(tmp_path / "model")).load(None, torch.float32)
    assert "\n" not in str(caught.value)


class _AsEarlyPythons:
    """An enumeration's member as Python 3.11.2 pickles it, or anything else that `getattr` is called for."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize(
    ("owner", "name", "harmless"),
    [
        (_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT", True),
        (TensorProperties, "__init__", False),
        ("", "join", False),
    ],
)
def test_getattr_in_a_description_gives_members_of_enumerations_only(
    tmp_path: Path, owner: Any, name: str, harmless: bool
) -> None:
    metadata = Metadata(state_dict_metadata={"a": _AsEarlyPythons(owner, name)}, storage_data={})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    if harmless:
        check_harmless(tmp_path)
    else:
        with pytest.raises(UserError, match=r"wants to run code when it is read: builtins\.getattr"):
            check_harmless(tmp_path)
