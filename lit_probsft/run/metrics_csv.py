"""metrics.csv: one row per logged step, continued after a resume."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lit_probsft.run.folder import RunFolder
from lit_probsft.storage.atomic import report_write_errors, write_text


class MetricsCSV(CSVLogger):
    """Lightning's CSV logger, for a file at a fixed place that a resumed run continues."""

    def __init__(self, run: RunFolder, resume: bool = False) -> None:
        super().__init__(save_dir=run.path, name="", version="", flush_logs_every_n_steps=20)
        self._resume = resume

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self.save_dir

    @property
    def experiment(self) -> Any:
        """The writer of the file; that only rank 0 writes is Lightning's business."""
        if self._experiment is None:
            self._experiment = _ContinuingWriter(self.save_dir, self._resume)
        return self._experiment

    def release(self) -> None:
        """From now on rows may be written: the run's folder is this run's."""
        self.experiment.held = False

    def drop_after(self, step: int) -> None:
        """Forget the rows past an optimizer step: a resumed run will make them again."""
        self.experiment.drop_after(step)


class _ContinuingWriter(ExperimentWriter):
    """Unlike its parent it keeps what an earlier run has written, and its rows in memory until `held` is False: the
    run's folder is claimed after the first rows are there."""

    held = True

    def __init__(self, folder: str, resume: bool) -> None:
        self.metrics: list[dict[str, float]] = []
        self.metrics_keys: list[str] = []
        self.log_dir, self.metrics_file_path = folder, str(Path(folder) / self.NAME_METRICS_FILE)
        self._fs = _LocalFiles()
        self.hparams = {}
        if resume and Path(self.metrics_file_path).exists():
            with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def log_hparams(self, params: dict[str, Any]) -> None:
        pass  # config.yaml has them

    def drop_after(self, step: int) -> None:
        path = Path(self.metrics_file_path)
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1].splitlines()  # the last line may have been cut
        rows = [row for row in csv.DictReader(whole) if None not in row.values() and int(float(row["step"])) < step]
        lines = [",".join(self.metrics_keys), *(",".join(row[key] or "" for key in self.metrics_keys) for row in rows)]
        write_text(path, "\n".join(lines) + "\n")

    def save(self) -> None:
        if self.metrics and not self.held:
            with report_write_errors("--runs_dir", Path(self.metrics_file_path)):
                Path(self.log_dir).mkdir(parents=True, exist_ok=True)
                super().save()


class _LocalFiles:
    """The two calls that the parent writer makes of a file system."""

    isfile = staticmethod(os.path.isfile)
    open = staticmethod(open)
