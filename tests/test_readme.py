"""The README's words are true: its commands run, its tables and its tree are complete."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from lit_probsft import objectives
from lit_probsft.cli import main
from tests import tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [
    line.split("#")[0].strip()
    for line in re.sub(r"\\\n\s*", "", README).splitlines()
    if line.startswith("    ") and ("python -m" in line or "pip install" in line)
]


def test_ci_installs_and_tests_with_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    (install_and_test,) = [command for command in COMMANDS if "pytest" in command]
    install, test = install_and_test.split(" && ")
    assert install.removeprefix("pip install ") in script
    assert f"\n{test}\n" in script


def test_the_ten_lines_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = PYTHON[0]
    assert len(code.strip().splitlines()) <= 11
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_users_objective_trains_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(PYTHON[1])
    (command,) = [command for command in COMMANDS if "mine.Shortfall" in command]
    cli = run(command, "--data.train.count=8", "--data.validation.count=4")
    assert cli.model.objective.gamma == 3


def test_your_own_rows_train_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_rows(tmp_path / "my.jsonl", 40)
    (command,) = [command for command in COMMANDS if "my.jsonl" in command]
    cli = run(command)
    assert cli.model.objective == objectives.Threshold(objectives.NegP(), 0.1)
    record = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())
    assert record["data"]["validation"]["kept"] == 2


def test_rows_are_packed_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = [command for command in COMMANDS if "--data.packing" in command]
    run(command, "--data.train.count=10", "--data.validation.count=2")
    record = json.loads((tmp_path / "runs" / "packed" / "run.json").read_text())["data"]["train"]
    assert record["packs"] * 1024 * record["share_full"] == pytest.approx(record["tokens"])
    assert record["packs"] < record["kept"]


def run(command: str, *more: str):
    args = shlex.split(command.replace("configs/", f"{ROOT}/configs/"))
    assert args[:3] == ["python", "-m", "lit_probsft"]
    return main(
        [*args[3:], *more, "--trainer.max_steps=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    )


def test_every_command_of_the_readme_exists() -> None:
    overview = main(["--help"]) or ""
    for command in COMMANDS:
        for match in re.finditer(r"python -m lit_probsft (\w+)", command):
            assert match[1] in ("fit", "validate", "test", "predict", "preview", "export", "divergence"), overview
        for path in re.findall(r"configs/[\w./]+\.yaml", command):
            assert (ROOT / path).exists(), path


def test_every_objective_is_named() -> None:
    for name in set(objectives.__all__) - {"Objective", "TokenStats"}:
        assert re.search(rf"`{name}\b", README), name


def test_the_tree_names_every_file() -> None:
    tree = README.split("## The tree")[1]
    for path in [*(ROOT / "lit_probsft").glob("*.py"), *(ROOT / "lit_probsft").glob("[!_]*/*.py")]:
        if path.parent.name == "objectives" and path.name != "base.py":
            continue  # a table of their own names them
        if path.name != "__init__.py" or path.parent.name == "lit_probsft":
            assert re.search(rf"^ +{re.escape(path.name)} ", tree, re.M), path
