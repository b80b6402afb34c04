"""A user's mistake ends in one message and status 2, and no file is written.

messages.json is the golden table of messages; `pytest tests/cli -m "" --update-messages` rewrites it.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lit_probsft
from lit_probsft.cli.commands import OTHERS, TRAINING, main
from lit_probsft.cli.configs import names
from lit_probsft.cli.shell import run
from lit_probsft.errors import UserError
from tests.cli import mistake_files, mistakes
from tests.cli.mistakes import Mistake

pytestmark = pytest.mark.filterwarnings("ignore")

WITH_CONFIG = ("validate", "test", "predict", "capability", "preview", "divergence")

QUICK = {
    "PARSING": 100,
    "YAML": 100,
    "OTHERS": 41,
    "COMPARE": 100,
    "TRAINER": 3,
    "RUNS": 2,
    "OPTIONS": 2,
    "DATA": 1,
    "EVALUATING": 2,
}
"""How many rows of each table run in the default suite. Rows that only parse take 0.1 s, the others 0.5 s."""


MESSAGES = Path(__file__).with_name("messages.json")


def tables() -> Iterator[Any]:
    for table, rows in vars(mistakes).items():
        if isinstance(rows, list):
            for index, mistake in enumerate(rows):
                key = f"{table}: {mistake.name}"
                late = index >= QUICK.get(table, 0)
                yield pytest.param(mistake, key, id=key, marks=[pytest.mark.slow] if late else [])


def read_messages() -> dict[str, str]:
    messages: dict[str, str] = json.loads(MESSAGES.read_text(encoding="utf-8"))
    return messages


def update_message(key: str, message: str) -> None:
    """Write a message into the table, in the order of the mistakes; locks the file for workers of xdist."""
    with MESSAGES.open("r+", encoding="utf-8") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        known = {**json.load(file), key: message}
        table = {row.id: known[row.id] for row in tables() if row.id in known}
        file.seek(0)
        file.write(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
        file.truncate()


def command_line(mistake: Mistake) -> list[str]:
    words = shlex.split(mistake.typed)
    if not words or words[0].startswith("-"):
        return ["fit", "--config", "c.yaml", *words]
    return [words[0], "--config", "c.yaml", *words[1:]] if words[0] in WITH_CONFIG else words


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs/ folder after a fit of c.yaml."""
    folder = tmp_path_factory.mktemp("trained")
    mistake_files.write_files(folder, None, {})
    with contextlib.chdir(folder):
        main(["fit", "--config", "c.yaml"])
    return folder / "runs"


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def exit_of(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Exit status and stderr of a command, as in a shell."""
    monkeypatch.setattr(sys, "argv", ["lit_probsft", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run()
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("mistake", "key"), list(tables()))
def test_a_mistake_ends_in_one_message_and_writes_nothing(
    mistake: Mistake,
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mistake_files.write_files(tmp_path, mistake.config, mistake.files)
    if mistake.before is not None:
        runs = (
            tmp_path
            if mistake.before is mistake_files.file_with_the_name_of_the_run
            else request.getfixturevalue("trained")
        )
        mistake.before(tmp_path, runs)
    before = content(tmp_path)
    status, output = exit_of(command_line(mistake), monkeypatch, capsys)
    for name in [name for name in sys.modules if name.endswith("_of_mistakes")]:
        del sys.modules[name]  # the next row's file has the same name
    assert status == 2
    assert content(tmp_path) == before
    places = {"folder": tmp_path, "commands": ", ".join([*TRAINING, *OTHERS]), "configs": ", ".join(names())}
    for place, value in places.items():
        output = output.replace(str(value), f"{{{place}}}")
    message = output.removeprefix("lit_probsft: error: ").removesuffix("\n")
    assert output == f"lit_probsft: error: {message}\n"
    if request.config.getoption("--update-messages"):
        update_message(key, message)
    assert message == read_messages()[key]


def test_the_table_has_one_message_per_mistake() -> None:
    assert list(read_messages()) == [row.id for row in tables()]


def test_no_mistake_is_listed_twice() -> None:
    rows = [row.values[0] for row in tables()]
    assert len(rows) >= 250
    assert len({(row.typed, row.config, repr(row.files), row.before) for row in rows}) == len(rows)


JARGON = (
    r"jsonargparse|Union subtypes|NestedArg|Namespace\(|<class '|MisconfigurationException|Traceback|NoneType"
    r"|not a valid input|Expected a path but|Subclass types|object at 0x|[Yy]ou (selected|have passed)"
)


def test_no_message_has_the_jargon_of_a_library() -> None:
    for key, message in read_messages().items():
        assert not re.search(JARGON, message), key


@pytest.mark.slow
def test_a_shell_shows_only_the_message(tmp_path: Path) -> None:
    mistake_files.write_files(tmp_path, None, {})
    done = subprocess.run(
        [sys.executable, "-m", "lit_probsft", "fit", "--config", "c.yaml", "--data.batch_size", "four"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    message = "lit_probsft: error: data.batch_size: expected a whole number, got 'four'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.parametrize(
    "words",
    [
        ["--debug", "export", "nowhere.ckpt", "out"],
        ["export", "nowhere.ckpt", "--debug", "out"],
        ["fit", "--config", "c.yaml", "--data.batch_size", "four", "--debug"],
        ["preview", "--debug", "--rows", "0"],
    ],
)
def test_debug_adds_the_traceback(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mistake_files.write_files(tmp_path, None, {})
    without = [word for word in words if word != "--debug"]
    status, message = exit_of(without, monkeypatch, capsys)
    assert (status, message.count("\n")) == (2, 1)
    status, output = exit_of(words, monkeypatch, capsys)
    assert status == 2
    assert output.startswith("Traceback (most recent call last)") or "\nTraceback (most recent call last)" in output
    assert output.endswith(message)
    monkeypatch.setenv("LIT_PROBSFT_DEBUG", "1")
    assert "Traceback" in exit_of(without, monkeypatch, capsys)[1]
    monkeypatch.setenv("LIT_PROBSFT_DEBUG", "0")
    assert exit_of(without, monkeypatch, capsys)[1] == message


def test_main_raises_with_debug_too() -> None:
    with pytest.raises(UserError, match="^CKPT: "):
        main(["export", "nowhere.ckpt", "out", "--debug"])


def test_more_devices_than_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mistake_files.write_files(tmp_path, None, {})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    flags = ["--trainer.accelerator=cuda", "--trainer.devices=4"]
    status, output = exit_of(["fit", "--config", "c.yaml", *flags], monkeypatch, capsys)
    assert status == 2
    assert output == "lit_probsft: error: trainer.devices: torch finds 2 GPUs, got 4\n"


# --- the format of a message


PLACE = r"(--)?[A-Za-z_{][\w.\[\]{}/-]*( and --\w+)?( line {})?|"
"""An argument: a flag, a dotted name, CKPT, or a variable. Empty if it is not known."""


def literal(node: ast.expr) -> str | None:
    """The text of a literal, with `{}` for each value in it; None for other expressions."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def test_every_error_names_its_argument() -> None:
    root = Path(lit_probsft.__file__).parent
    found = 0
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "UserError" and len(node.args) == 2:
                argument = literal(node.args[0])
                found += 1
                assert argument is None or re.fullmatch(PLACE, argument), f"{path}:{node.lineno}: {argument!r}"
    assert found > 300
