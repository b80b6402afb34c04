"""`report RUN`: one HTML page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_probsft.analysis.page import write_page
from lit_probsft.analysis.report import make_report
from lit_probsft.errors import UserError
from lit_probsft.run.folder import RunFolder


def run_report(options: argparse.Namespace) -> Path:
    """The command.

    Args:
        options: `run`, the folder, and `html`, where the page is written to; None for report.html in the run's folder.

    Raises:
        UserError: what `make_report` refuses, or the page cannot be written.
    """
    run = RunFolder(options.run)
    if not run.path.is_dir():
        raise UserError("RUN", f"expected the folder of a run, such as runs/quickstart, got {str(run.path)!r}")
    path: Path = options.html or run.report
    if not path.parent.is_dir():
        raise UserError("--html", f"expected a file in a folder that exists, got {str(path)!r}")
    write_page(path, make_report(run), "--html")
    print(f"{path}: the run as a page")
    return path
