"""Nothing that is loaded runs code: checkpoints and models that would do so are refused."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorProperties
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lit_probsft.cli.config.checks import read_checkpoint
from lit_probsft.errors import UserError
from lit_probsft.model import PretrainedCausalLM
from lit_probsft.run.checkpoint_export import export_checkpoint
from lit_probsft.storage.checkpoint_files import MANIFEST, damage, format_of
from lit_probsft.storage.checkpoint_safety import check_harmless
from lit_probsft.storage.checkpoint_writing import WholeFileIO, write_folder
from tests import tiny
from tests.storage.trees import SINGLE_PROCESS

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning"),
]


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
    """A pickle that must not be loaded; the fixture proves that it would run code."""
    evil = Evil(tmp_path / "trace")
    yield evil
    assert not evil.path.exists()
    torch.load(io.BytesIO(pickled({"a": evil}, "zip")), weights_only=False)
    assert evil.path.exists()


@pytest.mark.parametrize("how", HOW)
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, evil: Evil, how: str) -> None:
    path = tmp_path / "step-1.ckpt"
    path.write_bytes(pickled({"state_dict": {}, "lit_probsft": evil}, how))
    with pytest.raises(UserError, match="--resume: expected an intact checkpoint"):
        read_checkpoint(path, "--resume", None)
    with pytest.raises(UserError, match="CKPT: expected an? "):
        export_checkpoint(path, tmp_path / "out")
    for weights_only in (None, True):
        with pytest.raises((pickle.UnpicklingError, RuntimeError)):
            WholeFileIO().load_checkpoint(path, weights_only=weights_only)
    assert not (tmp_path / "out").exists()


def fsdp2_folder(path: Path, **more: Any) -> Path:
    """A checkpoint as one process writes it under FSDP2."""

    def write_shards(partial: Path) -> None:
        save({"state_dict": {"model.w": torch.ones(3)}, **more}, checkpoint_id=partial, no_dist=True)
        torch.save({"lit_probsft": {}}, partial / "meta.pt")

    write_folder(SINGLE_PROCESS, path, "fsdp2", write_shards)
    return path


def deepspeed_folder(path: Path) -> Path:
    """The part of a DeepSpeed checkpoint that is checked."""

    def write_shards(partial: Path) -> None:
        (partial / "checkpoint").mkdir()
        torch.save({"module": {"w": torch.ones(3)}}, partial / "checkpoint/mp_rank_00_model_states.pt")

    write_folder(SINGLE_PROCESS, path, "deepspeed", write_shards)
    return path


def rewrite_manifest(path: Path) -> None:
    """An attacker would give the changed folder a valid manifest, too."""
    kind, old = format_of(path), path.with_name("old")
    shutil.move(path, old)
    (old / MANIFEST).unlink()
    write_folder(
        SINGLE_PROCESS, path, kind, lambda partial: shutil.copytree(old, partial, dirs_exist_ok=True, symlinks=True)
    )
    assert damage(path) is None


def assert_refused(path: Path, message: str) -> None:
    rewrite_manifest(path)
    with pytest.raises(UserError, match=f"--resume: {message}") as caught:
        check_harmless(path)
    assert str(caught.value).isprintable()
    with pytest.raises(UserError, match=f"CKPT: {message}"):
        export_checkpoint(path, path.parent / "out")
    assert not (path.parent / "out").exists()


def test_the_checkpoints_of_our_strategies_are_harmless(tmp_path: Path) -> None:
    optimizer = {"state": {"w": {"step": torch.ones(()), "exp_avg": torch.ones(3, dtype=torch.bfloat16)}}, "lr": 1e-3}
    check_harmless(fsdp2_folder(tmp_path / "a", optimizer_0=optimizer))
    check_harmless(deepspeed_folder(tmp_path / "b"))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["meta.pt", "checkpoint/mp_rank_00_model_states.pt", "checkpoint/zero_pp_rank_0.pt"])
def test_a_shard_that_would_run_code_is_refused(tmp_path: Path, evil: Evil, name: str, how: str) -> None:
    path = fsdp2_folder(tmp_path / "c") if name == "meta.pt" else deepspeed_folder(tmp_path / "c")
    (path / name).write_bytes(pickled({"module": evil}, how))
    message = (
        "a checkpoint of plain data, .* would run code" if how == "zip" else "an intact checkpoint, .* cannot be read"
    )
    assert_refused(path, f"expected {message}")


@pytest.mark.parametrize("name", [".metadata", "__0.metadata", "__17.metadata"])
def test_metadata_that_would_run_code_is_refused(tmp_path: Path, evil: Evil, name: str) -> None:
    """torch reads the metadata of a single rank if there is no common one."""
    path = fsdp2_folder(tmp_path / "c")
    metadata = FileSystemReader(path).read_metadata()
    metadata.planner_data = evil
    (path / ".metadata").unlink()
    (path / name).write_bytes(pickle.dumps(metadata))
    assert_refused(path, "expected a checkpoint of plain data, .* would run code")


FILESYSTEM = "torch.distributed.checkpoint.filesystem"
NAMES = {
    "a function": ("os", "mkdir"),
    "a builtin": ("builtins", "eval"),
    "an import of an allowed module": (FILESYSTEM, "Path"),
    "a module that an allowed module imports": (FILESYSTEM, "os"),
    "a function of that module": (FILESYSTEM, "os.mkdir"),
    "a method": ("torch.distributed.checkpoint.metadata", "Metadata.__init__.__globals__"),
    "an attribute of torch other than a dtype": ("torch", "load"),
}


@pytest.mark.parametrize("name", NAMES)
def test_metadata_may_name_only_metadata_classes(tmp_path: Path, evil: Evil, name: str) -> None:
    module, function = NAMES[name]
    path = fsdp2_folder(tmp_path / "c")
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, function))
    call = b"\x80\x04" + words + b"\x93\x8c" + bytes([len(str(evil.path))]) + str(evil.path).encode() + b"\x85R."
    (path / ".metadata").write_bytes(call)
    assert_refused(path, "expected a checkpoint of plain data, .* would run code")


def test_bytes_among_the_shards_that_would_run_code_are_refused(tmp_path: Path, evil: Evil) -> None:
    """Objects other than tensors are pickled among the shards, and torch unpickles them without a check."""
    path = fsdp2_folder(tmp_path / "c", optimizer_0=evil)
    assert_refused(path, "expected a checkpoint of plain data, .* would run code")
    probe = fsdp2_folder(tmp_path / "d", optimizer_0=Evil(tmp_path / "trace of torch"))
    load({"optimizer_0": {}}, checkpoint_id=probe, no_dist=True)
    assert (tmp_path / "trace of torch").exists()


def test_a_link_to_a_folder_elsewhere_is_refused(tmp_path: Path, evil: Evil) -> None:
    """The check would not enter it, but a reader would."""
    path = deepspeed_folder(tmp_path / "c")
    shutil.move(path / "checkpoint", tmp_path / "elsewhere")
    (tmp_path / "elsewhere/mp_rank_00_model_states.pt").write_bytes(pickled({"module": evil}, "zip"))
    (path / "checkpoint").symlink_to(tmp_path / "elsewhere")
    assert_refused(path, "expected a checkpoint of plain data, .* is a link")


@pytest.mark.parametrize("how", HOW)
def test_a_model_that_would_run_code_is_refused(tmp_path: Path, evil: Evil, how: str) -> None:
    model = tiny.model()
    model.config.save_pretrained(tmp_path / "model")
    (tmp_path / "model/pytorch_model.bin").write_bytes(pickled({**model.state_dict(), "evil": evil}, how))
    with pytest.raises(UserError, match=r"model\.model\.model_name_or_path: .*code") as caught:
        PretrainedCausalLM(str(tmp_path / "model")).load(None, torch.float32)
    assert "\n" not in str(caught.value)


class _PickledByGetattr:
    """Pickled as a call of `getattr`, as Python 3.11.2 does with a member of an enumeration."""

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
def test_getattr_in_metadata_returns_only_members_of_enumerations(
    tmp_path: Path, owner: Any, name: str, harmless: bool
) -> None:
    metadata = Metadata(state_dict_metadata={"a": _PickledByGetattr(owner, name)}, storage_data={})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    if harmless:
        check_harmless(tmp_path)
    else:
        with pytest.raises(UserError, match=r"would run code when it is loaded: builtins\.getattr"):
            check_harmless(tmp_path)
