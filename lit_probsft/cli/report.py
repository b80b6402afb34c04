"""`report RUN`: writes an HTML report on a run, with the grades of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_probsft.cli.arguments import CommandParser, path_argument
from lit_probsft.errors import UserError


def run(args: Sequence[str]) -> Path:
    """Write the report and return its path.

    Raises:
        UserError: for a wrong flag, a folder that is not a run, or a page that cannot be written.
    """
    parser = CommandParser(
        prog="python -m lit_probsft report",
        description="Write an HTML report on a run: what it learned, what it forgot, which answers and tokens changed.",
    )
    parser.add_argument("run", metavar="RUN", type=path_argument, help="folder of a run, such as runs/quickstart")
    parser.add_argument("--html", metavar="FILE", type=path_argument, help="page to write (default: RUN/report.html)")
    parser.add_argument(
        "--evaluation",
        metavar="FILE",
        type=path_argument,
        help="results file of evaluate, or a folder with results files (default: those in RUN, if there are any)",
    )
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=path_argument,
        help="results file of the model before training: shows differences, and answers that changed",
    )
    options = parser.parse_args(args)
    from lit_probsft.analysis.page import write_page
    from lit_probsft.analysis.report import make_report
    from lit_probsft.evaluation.page import grades_section
    from lit_probsft.evaluation.results import results_in
    from lit_probsft.run.folder import RunFolder

    folder = RunFolder(options.run, "RUN")
    if not folder.path.is_dir():
        raise UserError("RUN", f"expected the folder of a run, such as runs/quickstart, got {str(folder.path)!r}")
    path: Path = options.html or folder.report
    if not path.parent.is_dir():
        raise UserError("--html", f"expected a file in an existing folder, got {str(path)!r}")
    evaluations = [options.evaluation] if options.evaluation else results_in(folder.path)
    if options.against and not evaluations:
        raise UserError("--evaluation", f"expected results with --against, found none in {str(folder.path)!r}")
    grades = grades_section(evaluations, options.against) if evaluations else []
    write_page(path, make_report(folder, grades), "--html")
    print(f"{path}: report on the run")
    return path
