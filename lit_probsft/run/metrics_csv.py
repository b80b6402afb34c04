"""metrics.csv: one row per logged step."""

from __future__ import annotations

import csv
import io
import os
import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lit_probsft.errors import first_line
from lit_probsft.run.folder import RunFolder
from lit_probsft.storage.atomic import remove, report_write_errors, write_text


class MetricsCSV(Logger):
    """Writes metrics to metrics.csv; a resumed run continues the file.

    The columns are sorted. When a new metric appears, the file is rewritten with one more column. Rows stay in memory
    until `release`, because Lightning logs the first metrics before the run folder is claimed.

    Attributes:
        checksums: CRC-32 of each row so far, for checkpoints: a resumed run finds the rows that have changed since.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self._run, self._path = run, run.metrics
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._released = False
        self.checksums: list[int] = []

    @property
    @override
    def name(self) -> str:
        return ""

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @override
    def save_dir(self) -> str:
        return str(self._run.path)

    @property
    @override
    def log_dir(self) -> str:
        return self.save_dir

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass  # config.yaml has them

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self._rows.append({**row, "step": len(self._rows) if step is None else step})
        self.checksums.append(_checksum(self._rows[-1]))

    @override
    @rank_zero_only
    def save(self) -> None:
        if not self._released or not self._rows:
            return
        self._run.check_present()
        columns = sorted({*self._columns, *(name for row in self._rows for name in row)})
        with report_write_errors("--runs_dir", self._path):
            if columns == self._columns and self._path.exists():
                with open(self._path, "a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, columns).writerows(self._rows)
                    file.flush()
                    os.fsync(file.fileno())  # before the checkpoint of the step, which a resumed run does not repeat
            else:
                self._rewrite(columns, [*self._read()[1], *self._rows])
        self._columns, self._rows = columns, []

    def release(self, step: int, checksums: Collection[int] = ()) -> None:
        """Start to write to the file, once the run folder is claimed.

        Args:
            step: at which the run starts. Rows of this and later steps are dropped, as they will be logged again.
            checksums: `checksums` when the checkpoint was saved. The rows written until then must have one of them.
        """
        self._released = True
        try:
            self._columns, rows, lost = self._read(checksums)
            problem = f"{lost} of its rows are missing, changed or unreadable" if lost else ""
        except (OSError, csv.Error, ValueError) as error:
            rows, problem = [], first_line(error)
        if problem:
            damaged = self._path.with_name("metrics-damaged.csv")
            with report_write_errors("--runs_dir", damaged):
                remove(damaged)
                self._path.rename(damaged)
            rank_zero_warn(f"--resume: {self._path} is damaged: {problem}. A copy is kept in {damaged.name}")
            self._columns = sorted({name for row in rows for name in row})
        rows = [row for row in rows if int(row["step"]) < step]
        self.checksums = [*map(_checksum, rows), *self.checksums]
        if self._columns:
            self._rewrite(self._columns, rows)

    def _read(self, checksums: Collection[int] = ()) -> tuple[list[str], list[dict[str, str]], int]:
        """Columns, rows and the number of lost rows, without a last line that a crash cut off.

        Raises:
            OSError, ValueError, csv.Error: the file, or the names of its columns, cannot be read.
        """
        if not self._path.exists():
            return [], [], 0
        lines = self._path.read_bytes().decode(errors="replace").split("\n")[:-1]
        if not lines:
            return [], [], len(checksums)
        columns = next(csv.reader(lines[:1]), [])
        if "step" not in columns or columns != sorted(set(columns)) or "\ufffd" in lines[0]:
            raise ValueError("its first line is not a list of columns")
        known = set(checksums)
        found = [_row(columns, line) for line in lines[1:]]
        rows = [
            row
            for place, row in enumerate(found)
            if row is not None and (place >= len(checksums) or _checksum(row) in known)
        ]
        return columns, rows, max(len(found), len(checksums)) - len(rows)

    def _rewrite(self, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self._path, text.getvalue())


def _row(columns: list[str], line: str) -> dict[str, str] | None:
    """The values of a line of the file; None unless it has a step, and a number or nothing in each column."""
    try:
        cells = zip(columns, next(csv.reader([line])), strict=True)
        row = {name: value for name, value in cells if value}
        for value in row.values():
            float(value)
    except (csv.Error, ValueError, StopIteration):
        return None
    return row if re.fullmatch("[0-9]+", row.get("step", "")) else None


def _checksum(row: Mapping[str, Any]) -> int:
    """CRC-32 of a row's values, as text; columns without a value do not count, as they may be added later."""
    values = {name: text for name, value in row.items() if (text := "" if value is None else str(value))}
    return zlib.crc32(repr(sorted(values.items())).encode())
