"""`compare A.json B.json ...`: compares results of `evaluate`, with intervals and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_probsft.cli.arguments import CommandParser, path_argument
from lit_probsft.errors import UserError

if TYPE_CHECKING:
    from lit_probsft.evaluation.comparison import Comparison


def run(args: Sequence[str]) -> Comparison:
    """Print the comparison, write the files that the flags name, and return it.

    Raises:
        UserError: for a wrong flag, a file that is not a results file or cannot be written, or results that were
            measured differently.
    """
    parser = CommandParser(
        prog="python -m lit_probsft compare",
        description="Compare results of evaluate with the first of them: paired differences with bootstrap intervals "
        "and tests, per task and overall, next to the paper's results for the same model and task.",
    )
    text = "results file, or a folder with results files, such as results/ or a run's"
    parser.add_argument("results", metavar="RESULTS", type=path_argument, nargs="+", help=text)
    parser.add_argument("--different", action="store_true", help="also compare what was measured differently")
    for name, kind in (("markdown", "Markdown"), ("latex", "LaTeX, for booktabs"), ("csv", "CSV, with all digits")):
        parser.add_argument(f"--{name}", metavar="FILE", type=path_argument, help=f"write the table as {kind}")
    parser.add_argument("--picture", metavar="FILE", type=path_argument, help="draw the numbers; a .png or .svg file")
    options = parser.parse_args(args)
    written = {f"--{name}": getattr(options, name) for name in ("markdown", "latex", "csv", "picture")}
    for flag, path in written.items():
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UserError(flag, f"expected a file in an existing folder, got {str(path)!r}")
    if options.picture is not None and options.picture.suffix not in (".png", ".svg"):
        raise UserError("--picture", f"expected a .png or .svg file, got {str(options.picture)!r}")
    from lit_probsft.evaluation import comparison_forms as forms
    from lit_probsft.evaluation.comparison import compare
    from lit_probsft.evaluation.results import read_results, results_files
    from lit_probsft.storage.atomic import atomic_write, report_write_errors, write_text

    files = results_files(options.results)
    comparison = compare({label: read_results(path) for label, path in files.items()}, different=options.different)
    print(forms.to_markdown(comparison), end="")
    for form in ("markdown", "latex", "csv"):
        if (path := written[f"--{form}"]) is not None:
            write_text(path, getattr(forms, f"to_{form}")(comparison), f"--{form}")
    if (path := options.picture) is not None:
        with report_write_errors("--picture", path), atomic_write(path) as partial:
            forms.draw(comparison, partial, path.suffix[1:])
    return comparison
