"""metrics.csv: rows, columns, and how a resumed run continues the file."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from lit_probsft.errors import UserError
from lit_probsft.run.folder import RunFolder
from lit_probsft.run.metrics_csv import MetricsCSV


def log(logger: MetricsCSV, step: int, **metrics: float) -> None:
    """As Lightning does."""
    logger.log_metrics(metrics, step)
    logger.save()


def test_rows_are_written_after_release_under_sorted_columns(tmp_path: Path) -> None:
    logger = MetricsCSV(RunFolder(tmp_path / "run"))
    log(logger, 0, nll=2.5)
    assert not (tmp_path / "run").exists()
    logger.release(0)
    log(logger, 1, nll=torch.tensor(0.5), a=1)  # type: ignore[arg-type]
    log(logger, 2, a=1e-7)
    path = tmp_path / "run" / "metrics.csv"
    assert path.read_bytes() == b"a,nll,step\r\n,2.5,0\r\n1,0.5,1\r\n1e-07,,2\r\n"


def test_a_new_metric_adds_a_column_to_earlier_rows(tmp_path: Path) -> None:
    logger = MetricsCSV(RunFolder(tmp_path))
    logger.release(0)
    log(logger, 0, b=1.0)
    log(logger, 1, a=2.0, c=3.0)
    assert (tmp_path / "metrics.csv").read_bytes() == b"a,b,c,step\r\n,1.0,,0\r\n2.0,,3.0,1\r\n"


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_a_resumed_run_drops_later_rows_and_a_row_cut_off_by_a_crash(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsCSV(RunFolder(tmp_path))
    first.release(0)
    for step in range(5):
        log(first, step, nll=float(step))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    second = MetricsCSV(RunFolder(tmp_path))
    log(second, 3, nll=3.0)
    second.release(3)
    log(second, 4, nll=4.0)
    assert path.read_bytes() == whole


def values(path: Path) -> list[dict[str, str]]:
    """The rows of a table, without empty cells."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_a_resumed_run_drops_rows_that_have_changed_since_the_checkpoint(tmp_path: Path) -> None:
    path, damaged = tmp_path / "metrics.csv", tmp_path / "metrics-damaged.csv"
    first = MetricsCSV(RunFolder(tmp_path))
    first.release(0)
    log(first, 0, nll=2.5)
    log(first, 1, nll=1.25, lr=1e-3)
    checksums = [*first.checksums]
    log(first, 1, a=1.0)  # after the checkpoint, with a column that the other rows did not have
    whole, rows = path.read_bytes(), values(path)

    second = MetricsCSV(RunFolder(tmp_path))
    second.release(2, checksums)
    assert (path.read_bytes(), second.checksums, damaged.exists()) == (whole, first.checksums, False)
    for place in range(1, whole.rindex(b"1.0,")):  # the names of columns, and the rows before the checkpoint
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="metrics.csv is damaged"):
            MetricsCSV(RunFolder(tmp_path)).release(2, checksums)
        assert [row for row in rows if row in values(path)] == values(path) != rows, content
        assert damaged.read_bytes() == content


@pytest.mark.parametrize("text", ["", "nll,st"])
def test_a_file_without_a_complete_header_is_started_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    logger = MetricsCSV(RunFolder(tmp_path))
    logger.release(1)
    log(logger, 1, nll=1.0)
    assert list(csv.reader((tmp_path / "metrics.csv").open())) == [["nll", "step"], ["1.0", "1"]]


def test_an_error_while_writing_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    logger = MetricsCSV(RunFolder(tmp_path / "run"))
    logger.release(0)
    with pytest.raises(UserError, match=r"--runs_dir: .*metrics\.csv could not be written: "):
        log(logger, 0, nll=1.0)


def test_callbacks_find_the_run_folder_as_log_dir(tmp_path: Path) -> None:
    assert MetricsCSV(RunFolder(tmp_path)).log_dir == str(tmp_path)
