"""The notebooks run; their stored outputs come from one run in order and reveal nothing about the machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])(?:/(?:home|Users|root|work|tmp|opt|mnt|var|usr|private)/|~/|[A-Z]:\\)")


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def texts(output: Any) -> list[str]:
    """The text of an output, without pictures."""
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return [output.evalue, *output.traceback]
    return [str(value) for kind, value in output.data.items() if not kind.startswith("image/")]


def test_the_readme_lists_every_notebook() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    assert re.findall(r"^\| \[(.+?)\]", readme, flags=re.MULTILINE) == [path.name for path in NOTEBOOKS]


@every_notebook
def test_a_stored_notebook_is_valid_and_small_and_names_the_default_kernel(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < 600_000


@every_notebook
def test_every_code_cell_was_executed_in_order(path: Path) -> None:
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_outputs_are_stored_and_reveal_nothing_about_the_machine(path: Path) -> None:
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", f"a warning or a progress bar was stored: {output.text}"
        for text in texts(output):
            assert not ABSOLUTE_PATH.search(text), text
            assert "Traceback" not in text, text


@pytest.mark.parametrize("text", ["see /home/me/x.py:3", "'/mnt/me/main'", "C:\\Users\\me", "(~/.cache)"])
def test_absolute_paths_are_found(text: str) -> None:
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("text", ["https://host/home/page", "-dL/dz_y", "share/home/x"])
def test_other_slashes_are_not_absolute_paths(text: str) -> None:
    assert not ABSOLUTE_PATH.search(text)


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs_without_error_or_warning(path: Path, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    streams = [
        o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs if o.output_type == "stream"
    ]
    assert [o.text for o in streams if o.name == "stderr"] == []
    assert list(tmp_path.iterdir()) == []
