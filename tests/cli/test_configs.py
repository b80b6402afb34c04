"""The configurations are in the wheel, and work wherever they are copied to."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.cli import configs as recipes
from lit_probsft.cli.commands import main
from lit_probsft.errors import UserError

ROOT = Path(__file__).parents[2]


def test_list_says_what_every_configuration_trains(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", "list"])
    lines = capsys.readouterr().out.splitlines()
    files = {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert {line.split()[0] for line in lines} == {name for name in files if not name.startswith("parts/")}
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_show_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs", "show", "llama_neg_p.yaml"])
    assert capsys.readouterr().out == (ROOT / "configs" / "llama_neg_p.yaml").read_text()


@pytest.mark.slow
def test_a_copy_includes_its_parts_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["configs", "copy", "quickstart"])
    assert (tmp_path / "configs/quickstart.yaml").read_text() == (ROOT / "configs/quickstart.yaml").read_text()
    cli: Any = main(
        ["fit", "--config", "configs/quickstart.yaml", "--data.train.count=16", "--data.validation.count=4",
         "--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    )  # fmt: skip
    assert cli.trainer.global_step == 1
    for name in recipes.names():
        written = recipes.copy(name, tmp_path / "all")
        assert {path.relative_to(tmp_path / "all") for path in written} == {
            path.relative_to(recipes.folder()) for path in recipes.included_files(recipes.path_of(name))
        }


def test_a_copy_never_replaces_files_that_differ(tmp_path: Path) -> None:
    recipes.copy("quickstart", tmp_path)
    recipes.copy("quickstart", tmp_path)
    (tmp_path / "quickstart.yaml").write_text("mine")
    with pytest.raises(
        UserError, match=r"OUT: .*quickstart.yaml exists and differs from the package's file; --overwrite"
    ):
        recipes.copy("quickstart", tmp_path)
    assert (tmp_path / "quickstart.yaml").read_text() == "mine"
    recipes.copy("quickstart", tmp_path, overwrite=True)
    assert (tmp_path / "quickstart.yaml").read_text() != "mine"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"OUT: expected a writable folder"):
        recipes.copy("quickstart", tmp_path / "file")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["copy", "quikstart"], "Did you mean 'quickstart'?"),
        (["show", "../pyproject"], "NAME: expected one of"),
        (["show"], "NAME"),
        ([], "list | show NAME | copy NAME"),
        (["lsit"], "COMMAND: expected one of list, show, copy, got 'lsit'. Did you mean 'list'?"),
    ],
)
def test_a_wrong_argument_is_one_message(args: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        main(["configs", *args])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_pyproject_names_every_package() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "lit_probsft").rglob("__init__.py")}
    assert {*there, "lit_probsft.configs"} == {*named}


@pytest.mark.slow
def test_an_installed_wheel_has_every_file_of_the_clone(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    tree = tmp_path / "tree"  # setuptools leaves its build next to the sources
    for name in ("lit_probsft", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", str(tree), "-w", str(tmp_path)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = [path for path in (ROOT / "lit_probsft").rglob("*") if path.suffix in (".py", ".typed", ".md")]
    tracked += [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    for path in tracked:
        name = path.relative_to(ROOT).as_posix()
        assert name.replace("configs/", "lit_probsft/configs/", 1 if name.startswith("configs/") else 0) in held, name
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    command = [sys.executable, "-m", "lit_probsft", "configs", "copy", "quickstart"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "python -m lit_probsft fit --config configs/quickstart.yaml"
    assert (tmp_path / "configs/parts/objective/nll.yaml").exists()


def test_a_copy_onto_itself_changes_nothing() -> None:
    """In a clone ./configs is the package's own folder."""
    before = {path: path.read_bytes() for path in recipes.folder().rglob("*.yaml")}
    written = recipes.copy("quickstart", recipes.folder())
    assert written
    assert {path: path.read_bytes() for path in recipes.folder().rglob("*.yaml")} == before
