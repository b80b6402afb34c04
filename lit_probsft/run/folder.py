"""The folder of a run: where everything lies, when it may be written to, and the record `run.json`.

In `runs/<name>/`:

    config.yaml         the whole configuration; `fit --config` on it repeats the run
    metrics.csv         one row per logged step
    run.json            versions, seed, objective, data, counts, metrics
    checkpoints/        step-N.ckpt; last.ckpt and best.ckpt (by val/nll) are two of them
    hf/                 the trained model as a Hugging Face folder
    hf-steps/           the same after each checkpoint, with `checkpoints.export: every`
    predictions.jsonl   answers of `predict`
    capability.json     what the model made of its training rows before training (`capability`, which needs no run);
                        capability.png is its picture, capability_examples.csv has every row
    divergence.json     of `divergence`
    .lock               held by the process that trains
    tokens.npz          p of validation tokens before and after
    report.html         what `report` makes of all this
    skipped.jsonl       rows that were not used, with the reason: split, row, what, reason; none where all were
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_probsft.errors import UserError
from lit_probsft.storage.atomic import recover, remove, report_write_errors, tidy

_LOCKS: dict[Path, Any] = {}
"""Open files by folder: to close one is to unlock its folder."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Nothing is created until `claim`."""

    path: Path

    @property
    def config(self) -> Path:
        """The configuration that repeats the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Logged metrics."""
        return self.path / "metrics.csv"

    @property
    def tokens(self) -> Path:
        """p of validation tokens before and after."""
        return self.path / "tokens.npz"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def record(self) -> Path:
        """`run.json`."""
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def hf(self) -> Path:
        """The exported model."""
        return self.path / "hf"

    @property
    def hf_steps(self) -> Path:
        """Exported models of checkpoints."""
        return self.path / "hf-steps"

    def hf_step(self, step: int) -> Path:
        """The exported model of one of them."""
        return self.hf_steps / f"step-{step:08d}"

    @property
    def predictions(self) -> Path:
        """Answers of `predict`."""
        return self.path / "predictions.jsonl"

    @property
    def skipped(self) -> Path:
        """Rows that were dropped or skipped."""
        return self.path / "skipped.jsonl"

    @property
    def capability(self) -> Path:
        """What `capability` has measured."""
        return self.path / "capability.json"

    @property
    def capability_examples(self) -> Path:
        """The same by rows."""
        return self.path / "capability_examples.csv"

    @property
    def capability_picture(self) -> Path:
        """The same to look at."""
        return self.path / "capability.png"

    @property
    def divergence(self) -> Path:
        """How far the trained model is from another."""
        return self.path / "divergence.json"

    @property
    def in_use(self) -> bool:
        """Has a run left something here that another would destroy?"""
        return any(p.exists() for p in (self.config, self.record, self.checkpoints, self.hf))

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that may not be written to, before any work is done.

        Raises:
            UserError: the folder is in use and neither flag was given, there is nothing to resume, the name is a file,
                or both flags were given.
        """
        if resume and overwrite:
            raise UserError("--resume and --overwrite", "expected at most one of them, got both")
        self.check_path()
        if resume and not self.checkpoints.is_dir():
            raise UserError("--resume", f"expected checkpoints in {self.checkpoints}, there are none")
        if self.in_use and not (resume or overwrite):
            raise UserError(
                "--name",
                f"the run folder {self.path} exists; continue that run with --resume, replace it with "
                "--overwrite, or choose another --name",
            )

    def check_path(self) -> None:
        """Refuse a place where no folder can be.

        Raises:
            UserError: the run folder or one above it is a file, or cannot be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError("--name", f"expected a folder at {self.path}, which is a file")
        found = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not found.is_dir():
            raise UserError("--runs_dir", f"expected a folder, got {str(self.path.parent)!r}: {found} is a file")
        if not os.access(found, os.W_OK | os.X_OK):
            raise UserError("--runs_dir", f"expected a folder that can be written to, got {str(self.path.parent)!r}")

    def claim(self, *, resume: bool) -> None:
        """Make the folder ready for a run: as it is to resume, empty otherwise.

        Raises:
            UserError: it cannot be written to.
        """
        with report_write_errors("--runs_dir", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            recover(self.hf)
            for folder in (self.path, self.hf_steps):
                tidy(folder)
            if not resume:
                mine = (self.config, self.record, self.metrics, self.predictions, self.skipped, self.divergence)
                for path in (*mine, self.tokens, self.report, self.checkpoints, self.hf, self.hf_steps):
                    if path.is_symlink() and path.is_dir():  # to a larger disk, say, which will be wanted again
                        for child in path.iterdir():
                            remove(child)
                    else:
                        remove(path)

    def _lock(self) -> None:
        """Until this process ends, however that may be."""
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            return
        if self.path.resolve() in _LOCKS:
            return
        file = open(self.path / ".lock", "a")  # noqa: SIM115 (closing it would unlock it)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    "--name",
                    f"expected a run folder that no other run writes to, another process trains in {self.path}",
                ) from error
        _LOCKS[self.path.resolve()] = file
