"""A small run that can be started, stopped in all ways, continued, and compared with one that nothing happened to."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lit_probsft.run.checkpoint_export import CHECKPOINT_KEY
from lit_probsft.run.timer import CLOCK
from lit_probsft.storage.checkpoint_files import damage
from tests import tiny
from tests.cli.test_fit import config
from tests.crash.server import Run, Server, Shell

EVERY = 2
"""Optimizer steps between two checkpoints; an epoch, and so a validation, has three."""


class Scene:
    """Runs of one configuration.

    Args:
        server: starts them.
        folder: where they lie.
        pause: seconds that each micro-batch takes longer.
        changes: of the configuration, as of `tests.cli.test_fit.config`.
    """

    def __init__(self, server: Server, folder: Path, *, pause: float = 0.0, **changes: Any) -> None:
        self.server, self.folder = server, folder
        folder.mkdir(parents=True, exist_ok=True)
        # Dropout: random numbers must go on as well.
        model = {"class_path": "RandomCausalLM", "init_args": {"config": {**tiny.LLAMA, "attention_dropout": 0.1}}}
        settings = {
            "model__model": model,
            "data__batch_size": 4,
            "trainer__accumulate_grad_batches": 2,
            "checkpoints__save_every": EVERY,
            "trainer__callbacks": [{"class_path": "tests.crash.callbacks.Diary", "init_args": {"pause": pause}}],
        }
        self.config = config(folder, **{**settings, **changes})

    def command(self, name: str, *flags: str) -> list[str]:
        return ["fit", "--config", str(self.config), "--name", name, *flags]

    def start(self, name: str, *flags: str, **faults: Any) -> Run:
        """`fit`, in the background."""
        return self.watched(self.run(name), *self.command(name, *flags), **faults)

    def watched(self, folder: Path, *command: Any, **faults: Any) -> Run:
        """Any command, watched as it changes a folder."""
        (self.folder / "note").unlink(missing_ok=True)
        faults = {"folder": str(folder), "note": str(self.folder / "note"), **faults}
        return self.server.start(*command, cwd=self.folder, **faults)

    def fit(self, name: str, *flags: str, status: int = 0, **faults: Any) -> Run:
        """`fit`, until it ends as expected, with all of its processes."""
        run = self.start(name, *flags, **faults)
        run.wait()
        assert run.status == status, f"status {run.status} instead of {status}:\n{run.said[-6000:]}"
        assert run.gone(), run.processes()
        return run

    def shell(self, name: str, *flags: str, torchrun: bool = False) -> Shell:
        """`fit` as a user types it."""
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"] if torchrun else []
        return Shell(self.server, *launcher, "lit_probsft", *self.command(name, *flags), cwd=self.folder)

    def going_on(self, name: str) -> list[str]:
        """The flags with which a user goes on with what is there."""
        if list(self.checkpoints(name).glob("step-*.ckpt")):
            return ["--resume"]
        return ["--overwrite"]

    def wait_until_trained(self, run: Run, name: str, step: int) -> None:
        """Until all ranks are past a step."""
        until = time.monotonic() + 60
        while True:
            diaries = [_read_diary(path) for path in self.run(name).parent.glob(f"{name}.*.diary")]
            if diaries and all(any(entry.get("step", 0) >= step for entry in diary) for diary in diaries):
                return
            assert run.poll() is None, run.said[-6000:]
            assert time.monotonic() < until, run.said[-6000:]
            time.sleep(0.01)

    # --- what is there

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def checkpoints(self, name: str) -> Path:
        return self.run(name) / "checkpoints"

    def diary(self, name: str, rank: int = 0) -> list[dict[str, Any]]:
        return _read_diary(self.run(name).with_name(f"{name}.{rank}.diary"))

    def notes(self) -> list[str]:
        """The points of the last run: `saving` or `training`, and what was done."""
        path = self.folder / "note"
        return path.read_text().splitlines() if path.exists() else []

    def points(self) -> Counter[str]:
        """Where the last run could have died, and how often."""
        return Counter(note.partition(" ")[2] for note in self.notes() if not note.endswith((" begin", " end")))

    def assert_nothing_half(self, name: str) -> None:
        """No name stands for something that is not whole."""
        for path in self.checkpoints(name).glob("*.ckpt"):
            assert damage(path) is None, f"{path.name}: {damage(path)}"
        for path in [self.run(name) / "hf", *(self.run(name) / "hf-steps").glob("step-*")]:
            if path.exists():
                exported(path)

    def assert_end(self, name: str, whole: str) -> None:
        """A run ends as another did: trained alike to the bit, recorded alike, with the same files.

        What is logged of a step is logged after its checkpoint is written, so it is missing if the run died between.
        """
        ours, expected = self.end(name), self.end(whole)
        last_words = {str(entry["start"] - 1) for entry in self.diary(name) if "start" in entry}
        expected["metrics"] = [r for r in expected["metrics"] if r in ours["metrics"] or r["step"] not in last_words]
        found = {part: difference(ours[part], expected[part]) for part in expected}
        assert not any(found.values()), {part: what for part, what in found.items() if what}

    def end(self, name: str) -> dict[str, Any]:
        run = self.run(name)
        folders = [path for path in [run / "hf", *(run / "hf-steps").glob("step-*")] if path.exists()]
        return {
            "files": sorted(str(path.relative_to(run)) for path in run.rglob("*")),
            "exported": {path.name: exported(path) for path in folders},
            "last": state(self.checkpoints(name) / "last.ckpt"),
            "best": state(self.checkpoints(name) / "best.ckpt"),
            "metrics": metrics(run / "metrics.csv"),
            "status": json.loads((run / "run.json").read_text())["status"],
        }

    def snapshot(self, name: str) -> dict[str, str]:
        """Checkpoints and exported models to the bit; what the run tells about itself changes when it goes on."""
        kept = {}
        for path in sorted(self.run(name).rglob("*")):
            if path.is_file() and path.parent != self.run(name):
                kept[str(path.relative_to(self.run(name)))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return kept


def _read_diary(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def documents(diary: list[dict[str, Any]]) -> dict[str, Any]:
    """Which documents were trained on in which micro-batch; what was done twice was done alike."""
    found: dict[str, Any] = {}
    for entry in diary:
        if "step" in entry:
            place = f"step {entry['step']}, micro-batch {entry['part']}"
            assert found.setdefault(place, entry["documents"]) == entry["documents"], place
    return found


def losses(diary: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """For each time that training went on: the steps that had been completed, and how many of them were there."""
    found, done = [], None
    for entry in diary:
        if "start" in entry and done is not None:
            found.append((done, entry["start"]))
        done = entry.get("step", entry.get("start"))
    return found


def exported(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a Hugging Face folder, of which no file is missing or cut short."""
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        json.loads((folder / name).read_text())
    assert "lit_probsft" in (folder / "README.md").read_text(), folder
    assert (folder / "chat_template.jinja").read_text(), folder
    return load_file(folder / "model.safetensors")


def state(checkpoint: Path) -> dict[str, Any]:
    """The whole content of a checkpoint, but for what the clock decides: the seconds so far, and the model card."""
    if checkpoint.is_dir():
        content = _slices(checkpoint)
    else:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    del content[CHECKPOINT_KEY]["card"], content[CLOCK]
    return content


def _slices(checkpoint: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    content: dict[str, Any] = {}
    reader = FileSystemReader(checkpoint)
    _load_state_dict(content, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return {**content, **torch.load(checkpoint / "meta.pt", map_location="cpu", weights_only=True)}


def metrics(path: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv but for the one column that the clock decides."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [{key: value for key, value in row.items() if value and key != "tokens_per_second"} for row in rows]
    return [row for row in kept if row.keys() - {"step", "epoch"}]


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """The first place at which two nested values differ in a bit; None if nowhere."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return None if same else f"{where}: tensors"
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return (
                f"{where}: {sorted(map(str, one.keys() - other.keys()))} {sorted(map(str, other.keys() - one.keys()))}"
            )
        pairs = [(f"{where}.{key}", one[key], other[key]) for key in one]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            more, missing = [str(x) for x in one if x not in other], [str(x) for x in other if x not in one]
            return f"{where}: not expected {more}, missing {missing}"
        pairs = [(f"{where}[{index}]", *pair) for index, pair in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other or (one != one and other != other) else f"{where}: {one!r}, expected {other!r}"
    return next((found for place, a, b in pairs if (found := difference(a, b, place))), None)
