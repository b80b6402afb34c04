"""Small runs that tests start, interrupt, resume and compare with an uninterrupted run."""

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
"""Optimizer steps between two checkpoints. An epoch has three steps and ends with a validation."""


class Scene:
    """Runs of one configuration.

    Args:
        server: starts the runs.
        folder: holds the configuration, the data and `runs`.
        pause: seconds added to each micro-batch.
        changes: changes to the configuration, as in `tests.cli.test_fit.config`.
    """

    def __init__(self, server: Server, folder: Path, *, pause: float = 0.0, **changes: Any) -> None:
        self.server, self.folder = server, folder
        folder.mkdir(parents=True, exist_ok=True)
        # With dropout, a resumed run must restore the random state too.
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
        """Start `fit` in the background."""
        return self.watched(self.run(name), *self.command(name, *flags), **faults)

    def watched(self, folder: Path, *command: Any, **faults: Any) -> Run:
        """Start any command in the background and watch what it does to a folder."""
        (self.folder / "note").unlink(missing_ok=True)
        faults = {"folder": str(folder), "note": str(self.folder / "note"), **faults}
        return self.server.start(*command, cwd=self.folder, **faults)

    def fit(self, name: str, *flags: str, status: int = 0, **faults: Any) -> Run:
        """Run `fit` to its end; check its exit status and that no process is left."""
        run = self.start(name, *flags, **faults)
        run.wait()
        assert run.status == status, f"status {run.status} instead of {status}:\n{run.output[-6000:]}"
        assert run.gone(), run.processes()
        return run

    def shell(self, name: str, *flags: str, torchrun: bool = False) -> Shell:
        """Start `fit` in a new interpreter, as a user does."""
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"] if torchrun else []
        return Shell(self.server, *launcher, "lit_probsft", *self.command(name, *flags), cwd=self.folder)

    def resume_flags(self, name: str) -> list[str]:
        """The flags to continue a run: `--resume`, or `--overwrite` if it has no checkpoint."""
        if list(self.checkpoints(name).glob("step-*.ckpt")):
            return ["--resume"]
        return ["--overwrite"]

    def wait_until_trained(self, run: Run, name: str, step: int) -> None:
        """Wait until all ranks have begun the step after `step` steps."""
        until = time.monotonic() + 60
        while True:
            diaries = [_read_diary(path) for path in self.run(name).parent.glob(f"{name}.*.diary")]
            if diaries and all(any(entry.get("step", 0) >= step for entry in diary) for diary in diaries):
                return
            assert run.poll() is None, run.output[-6000:]
            assert time.monotonic() < until, run.output[-6000:]
            time.sleep(0.01)

    # --- what a run leaves behind

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def checkpoints(self, name: str) -> Path:
        return self.run(name) / "checkpoints"

    def diary(self, name: str, rank: int = 0) -> list[dict[str, Any]]:
        return _read_diary(self.run(name).with_name(f"{name}.{rank}.diary"))

    def notes(self) -> list[str]:
        """The points of the last run: `saving` or `training`, and the system call."""
        path = self.folder / "note"
        return path.read_text().splitlines() if path.exists() else []

    def points(self) -> Counter[str]:
        """The points at which the last run could have died, with their counts."""
        return Counter(note.partition(" ")[2] for note in self.notes() if not note.endswith((" begin", " end")))

    def assert_nothing_half_written(self, name: str) -> None:
        """Check that every checkpoint and exported model with a final name is complete."""
        for path in self.checkpoints(name).glob("*.ckpt"):
            assert damage(path) is None, f"{path.name}: {damage(path)}"
        for path in [self.run(name) / "hf", *(self.run(name) / "hf-steps").glob("step-*")]:
            if path.exists():
                exported(path)

    def assert_end(self, name: str, whole: str) -> None:
        """Check that two runs end the same: weights and rows of metrics.csv bit for bit, records and files."""
        ours, expected = self.end(name), self.end(whole)
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
        """Hashes of checkpoints and exported models; the run's own records are left out, as they change on resume."""
        kept = {}
        for path in sorted(self.run(name).rglob("*")):
            if path.is_file() and path.parent != self.run(name):
                kept[str(path.relative_to(self.run(name)))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return kept


def _read_diary(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def documents(diary: list[dict[str, Any]]) -> dict[str, Any]:
    """The documents of each micro-batch; a micro-batch that was repeated must have had the same ones."""
    found: dict[str, Any] = {}
    for entry in diary:
        if "step" in entry:
            place = f"step {entry['step']}, micro-batch {entry['part']}"
            assert found.setdefault(place, entry["documents"]) == entry["documents"], place
    return found


def restarts(diary: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """For each restart, the steps completed before it and the step that training resumed from."""
    found, done = [], None
    for entry in diary:
        if "start" in entry and done is not None:
            found.append((done, entry["start"]))
        done = entry.get("step", entry.get("start"))
    return found


def exported(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a Hugging Face folder; checks that every file is present and complete."""
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        json.loads((folder / name).read_text())
    assert "lit_probsft" in (folder / "README.md").read_text(), folder
    assert (folder / "chat_template.jinja").read_text(), folder
    return load_file(folder / "model.safetensors")


def state(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint without what depends on time or on the run's name: the elapsed seconds, the model
    card, the configuration and the checksums of metrics.csv."""
    if checkpoint.is_dir():
        content = _shards(checkpoint)
    else:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    del content[CHECKPOINT_KEY]["card"], content[CLOCK]
    for name in ("config", "rows"):
        content["callbacks"].get("RunRecord", {}).pop(name, None)
    return content


def _shards(checkpoint: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    content: dict[str, Any] = {}
    reader = FileSystemReader(checkpoint)
    _load_state_dict(content, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return {**content, **torch.load(checkpoint / "meta.pt", map_location="cpu", weights_only=True)}


def metrics(path: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the column that depends on time."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if value and key != "tokens_per_second"} for row in rows]


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """Where two nested values first differ, bit for bit; None if they are equal."""
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
