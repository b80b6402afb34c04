"""A damaged checkpoint is detected and costs one interval between checkpoints, not the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_probsft.errors import UserError
from lit_probsft.storage.checkpoint_files import damage, steps
from lit_probsft.storage.checkpoint_writing import write_file
from lit_probsft.training.checkpoints import where_to_continue
from tests.crash.scene import Scene, difference
from tests.crash.server import Server

KINDS: dict[str, dict[str, Any]] = {
    "file": {},
    "folder": {"trainer__strategy": "fsdp2", "trainer__devices": 1},
}


def flip(path: Path, place: float, bits: int = 0xFF) -> None:
    """Flip bits of one byte, at a fraction of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= bits
    path.write_bytes(content)


def cut(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])


@pytest.mark.parametrize("bits", [1, 0xFF])
def test_a_changed_byte_of_a_file_is_detected_unless_it_changes_no_content(tmp_path: Path, bits: int) -> None:
    content = {"tensor": torch.arange(7.0), "number": 3, "text": "a"}
    path = tmp_path / "a.ckpt"
    write_file(content, path)
    assert damage(path) is None
    whole, detected = path.read_bytes(), 0
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ bits]) + whole[index + 1 :])
        wrong = damage(path)
        detected += wrong is not None
        if wrong is None:
            found = torch.load(path, weights_only=True, mmap=True)
            assert not difference(found, content), f"byte {index} of {len(whole)}"
    assert detected > len(whole) / 3


@pytest.fixture(scope="module")
def scenes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    """For each kind of checkpoint, a scene with a completed run and one killed after three checkpoints."""
    made: dict[str, Scene] = {}

    def scene(kind: str) -> Scene:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = Scene(server, folder, trainer__max_epochs=4, checkpoints__keep_last=3, **KINDS[kind])
            made[kind].fit("whole")
            # It dies at its fifth checkpoint; they are written at steps 2, 3, 4, 6 and 8.
            made[kind].fit("killed", status=-9, die_at=("before replace checkpoints/.step-N.ckpt.partial", 6))
        return made[kind]

    return scene


def copy_of(scene: Scene, name: str) -> list[Path]:
    """Copy the killed run to another name; returns its checkpoints, newest first."""
    shutil.rmtree(scene.run(name), ignore_errors=True)
    shutil.copytree(scene.run("killed"), scene.run(name), symlinks=True)
    found = [path for _, path in reversed(steps(scene.checkpoints(name)))]
    assert len(found) >= 3
    assert [damage(path) for path in found] == [None] * len(found)
    return found


MANIFEST = "manifest.json"
DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    **{
        f"a byte of a file at {place}": ("file", lambda path, place=place: flip(path, place))
        for place in (0, 0.1, 0.5, 0.9, 0.995)
    },
    "half a file": ("file", lambda path: cut(path, 0.5)),
    "an empty file": ("file", lambda path: cut(path, 0)),
    "another file": ("file", lambda path: path.write_text("something else")),
    **{
        f"a byte of {name}": ("folder", lambda path, name=name: flip(path / name, 0.4))
        for name in ("__0_0.distcp", ".metadata", "meta.pt", MANIFEST)
    },
    "a file is missing": ("folder", lambda path: (path / "__0_0.distcp").unlink()),
    "half of a shard": ("folder", lambda path: cut(path / "__0_0.distcp", 0.5)),
    "the manifest is missing": ("folder", lambda path: (path / MANIFEST).unlink()),
    "half a manifest": ("folder", lambda path: cut(path / MANIFEST, 0.5)),
    "an empty manifest": ("folder", lambda path: cut(path / MANIFEST, 0)),
    "a manifest of nothing": ("folder", lambda path: (path / MANIFEST).write_text("{}")),
    "a manifest of another kind": ("folder", lambda path: (path / MANIFEST).write_text("[]")),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_detected_and_the_newest_intact_checkpoint_found(scenes: Any, what: str) -> None:
    kind, harm = DAMAGES[what]
    newest, before, _ = copy_of(scenes(kind), "damaged")[:3]
    harm(newest)
    assert damage(newest) is not None
    with pytest.warns(UserWarning, match=rf"--resume: .*{newest.name} is damaged.*resuming from .*{before.name}"):
        assert where_to_continue(newest.parent) == before


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 0x80])
def test_a_changed_byte_of_a_manifest_is_detected_unless_it_changes_no_content(scenes: Any, bits: int) -> None:
    newest = copy_of(scenes("folder"), "damaged")[0]
    whole = (newest / MANIFEST).read_bytes()
    for index in range(len(whole)):
        (newest / MANIFEST).write_bytes(whole[:index] + bytes([whole[index] ^ bits]) + whole[index + 1 :])
        if damage(newest) is None:
            assert json.loads((newest / MANIFEST).read_text()) == json.loads(whole), whole[: index + 1][-30:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_from_the_newest_intact_checkpoint_bit_for_bit(scenes: Any, kind: str) -> None:
    """The two newest checkpoints are damaged, and so is `last.ckpt`, which links to the newest."""
    scene = scenes(kind)
    newest, middle, intact = copy_of(scene, "resumed")[:3]
    for path in (newest, middle):
        flip(path / "__0_0.distcp" if path.is_dir() else path, 0.5)
    run = scene.fit("resumed", "--resume")
    for path in (newest, middle):
        assert sum(f"{path.name} is damaged" in line and intact.name in line for line in run.output.splitlines()) == 1
    assert scene.diary("resumed")[0] == {"start": int(intact.stem.removeprefix("step-"))}
    scene.assert_end("resumed", "whole")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_if_all_checkpoints_are_damaged_one_error_says_so_and_no_file_changes(scenes: Any, kind: str) -> None:
    scene = scenes(kind)
    checkpoints = copy_of(scene, "lost")
    for path in checkpoints:
        flip(path / "meta.pt" if path.is_dir() else path, 0.5)
    before = scene.snapshot("lost")
    with pytest.raises(UserError, match="--resume: expected an intact checkpoint") as caught:
        where_to_continue(scene.checkpoints("lost"))
    assert all(path.name in str(caught.value) for path in checkpoints)
    run = scene.fit("lost", "--resume", status=2)
    assert run.output.count("lit_probsft: error: --resume: expected an intact checkpoint") == 1
    assert "Traceback" not in run.output
    assert scene.snapshot("lost") == before
