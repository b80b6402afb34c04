"""The folder of a run: where its files are, and who may write to it.

`runs/<name>/` contains:

    config.yaml         the complete configuration; `fit --config` on it repeats the run
    metrics.csv         one row per logged step
    metrics-damaged.csv metrics.csv as it was when the run resumed, if it was damaged
    run.json            versions, seeds, objective, data, counts, metrics
    checkpoints/        step-N.ckpt; last.ckpt and best.ckpt (by `checkpoints.best`) are second names of two of them
    hf/                 the trained model as a Hugging Face folder
    hf-steps/           the model of each checkpoint, with `checkpoints.export: every`
    evaluation/         step-N.jsonl: the graded answers of each evaluation during training
    tokens.npz          p of validation tokens before and after training
    skipped.jsonl       the rows that were not used: split, row (and document), what, reason; missing if all were used
    predictions.jsonl   answers, written by `predict`
    alpaca_eval.json    the same for AlpacaEval, with `--predictions_format alpaca_eval`
    evalplus.jsonl      the same for evalplus, with `--predictions_format evalplus`
    report.html         written by `report`
    capability.json     p of the training rows before training, written by `capability`, which needs no run;
                        with capability.png and, row by row, capability_examples.csv
    divergence.json     written by `divergence`
    .lock               held by the process that trains
"""

from __future__ import annotations

import os
from pathlib import Path

from lit_probsft.errors import UserError
from lit_probsft.storage.atomic import recover, remove, report_write_errors, tidy
from lit_probsft.storage.folder_lock import NAME as LOCK
from lit_probsft.storage.folder_lock import lock_folder, lost_lock

_OUR_LINKS = ("last.ckpt", "best.ckpt")


class RunFolder:
    """The paths of one run; the module describes the files. Nothing is created before `claim`.

    The folder itself and its parents may be links.

    Args:
        path: of the folder, which need not exist.
        argument: names it in errors.

    Raises:
        UserError: something in the folder is a link. Writing through it would change files outside the folder.
    """

    def __init__(self, path: Path, argument: str = "--name") -> None:
        self.path = path
        self.lock_file = path / LOCK
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.record = path / "run.json"
        self.checkpoints = path / "checkpoints"
        self.hf = path / "hf"
        self.hf_steps = path / "hf-steps"
        self.evaluation = path / "evaluation"
        self.tokens = path / "tokens.npz"
        self.skipped = path / "skipped.jsonl"
        self.predictions = path / "predictions.jsonl"
        self.alpaca_eval = path / "alpaca_eval.json"
        self.evalplus = path / "evalplus.jsonl"
        self.report = path / "report.html"
        self.capability = path / "capability.json"
        self.capability_picture = path / "capability.png"
        self.capability_examples = path / "capability_examples.csv"
        self.divergence = path / "divergence.json"
        for folder in (path, self.checkpoints, self.hf_steps, self.evaluation):
            for entry in os.scandir(folder) if folder.is_dir() else ():
                if entry.is_symlink() and not (folder == self.checkpoints and entry.name in _OUR_LINKS):
                    raise UserError(
                        argument,
                        f"expected a run folder without links, {entry.path} is a link to {os.readlink(entry.path)}; "
                        "--runs_dir can put whole runs on another disk",
                    )

    def hf_step(self, step: int) -> Path:
        """The exported model of the checkpoint at a step."""
        return self.hf_steps / f"step-{step:08d}"

    @property
    def in_use(self) -> bool:
        """Whether the folder holds results of a run that another run would destroy."""
        return any(p.exists() for p in (self.config, self.record, self.checkpoints, self.hf))

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that the run must not write to, before any work is done.

        Raises:
            UserError: the folder is in use and neither flag is given, both flags are given, there is nothing to
                resume, or the folder cannot be created.
        """
        if resume and overwrite:
            raise UserError("--resume and --overwrite", "expected at most one of them, got both")
        self.check_path()
        if resume and not self.checkpoints.is_dir():
            raise UserError("--resume", f"expected checkpoints in {self.checkpoints}, found none")
        if self.in_use and not (resume or overwrite):
            raise UserError(
                "--name",
                f"the run folder {self.path} exists; continue that run with --resume, replace it with "
                "--overwrite, or choose another --name",
            )

    def check_path(self) -> None:
        """Refuse a path where the folder cannot be created.

        Raises:
            UserError: the path or one of its parents is a file, or is not writable.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError("--name", f"expected a folder, {self.path} is a file")
        found = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not found.is_dir():
            raise UserError("--runs_dir", f"expected a folder, got {str(self.path.parent)!r}: {found} is a file")
        if not os.access(found, os.W_OK | os.X_OK):
            raise UserError("--runs_dir", f"expected a writable folder, got {str(self.path.parent)!r}")

    def claim(self, *, resume: bool, overwrite: bool = False) -> None:
        """Lock the folder and prepare it: a resumed run finds its files, any other run an empty folder.

        Raises:
            UserError: the folder cannot be written to, another process is training in it, or one has trained in it
                since `check`.
        """
        with report_write_errors("--runs_dir", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            self.check(resume=resume, overwrite=overwrite)
            recover(self.hf)
            for folder in (self.path, self.hf_steps, self.evaluation):
                tidy(folder)
            if not resume:
                files = (self.config, self.record, self.metrics, self.skipped, self.divergence)
                answers = (self.predictions, self.alpaca_eval, self.evalplus, self.evaluation)
                for path in (*files, *answers, self.tokens, self.report, self.checkpoints, self.hf, self.hf_steps):
                    remove(path)

    def lock_existing(self) -> None:
        """Lock the folder of a run that exists, before anything in it is read.

        Raises:
            UserError: another process is training in it.
        """
        if self.lock_file.exists():
            with report_write_errors("--runs_dir", self.path):
                self._lock()

    def check_present(self) -> None:
        """Refuse to write to a folder that was removed since this process has locked it.

        Raises:
            UserError: the folder is gone, or there is another folder at its path.
        """
        if lost_lock(self.path):
            raise UserError("--name", f"the run folder {self.path} was removed or replaced during the run")

    def _lock(self) -> None:
        """Lock the folder until the command ends in whatever way."""
        lock_folder(self.path, "--name", f"another process is training in {self.path}")
