"""What a user does wrong is told in one message, word for word, and nothing is half-written."""

from __future__ import annotations

import ast
import contextlib
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
from lit_probsft.cli import commands as cli
from lit_probsft.cli.commands import main, run
from lit_probsft.cli.configs import names
from lit_probsft.errors import UserError
from tests.cli import mistaken, mistakes
from tests.cli.mistakes import Mistake

pytestmark = pytest.mark.filterwarnings("ignore")

WITH_CONFIG = ("validate", "test", "predict", "capability", "preview", "divergence")

QUICK = {
    "PARSING": 40,
    "YAML": 40,
    "OTHERS": 41,
    "TRAINER": 3,
    "RUNS": 2,
    "OPTIONS": 2,
    "DATA": 1,
}
"""How many rows of a table the default suite takes: those that build nothing take 0.1 s, others 0.5 s."""


def tables() -> Iterator[Any]:
    for table, rows in vars(mistakes).items():
        if isinstance(rows, list):
            for index, mistake in enumerate(rows):
                late = index >= QUICK.get(table, 0)
                yield pytest.param(mistake, id=f"{table}: {mistake.name}", marks=[pytest.mark.slow] if late else [])


def typed(mistake: Mistake) -> list[str]:
    words = shlex.split(mistake.typed)
    if not words or words[0].startswith("-"):
        return ["fit", "--config", "c.yaml", *words]
    return [words[0], "--config", "c.yaml", *words[1:]] if words[0] in WITH_CONFIG else words


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs/ of a fit of c.yaml as it is."""
    folder = tmp_path_factory.mktemp("trained")
    mistaken.furnish(folder, None, {})
    with contextlib.chdir(folder):
        main(["fit", "--config", "c.yaml"])
    return folder / "runs"


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def end_of(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Exit status and stderr of a command, as the shell gets them."""
    monkeypatch.setattr(sys, "argv", ["lit_probsft", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run()
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize("mistake", list(tables()))
def test_a_mistake_is_told_in_one_message_and_nothing_is_begun(
    mistake: Mistake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mistaken.furnish(tmp_path, mistake.config, mistake.files)
    if mistake.before is not None:
        runs = tmp_path if mistake.before is mistaken.run_is_a_file else request.getfixturevalue("trained")
        mistake.before(tmp_path, runs)
    before = content(tmp_path)
    status, told = end_of(typed(mistake), monkeypatch, capsys)
    for name in [name for name in sys.modules if name.endswith("_of_mistakes")]:
        del sys.modules[name]  # the next row's file has the same name
    assert status == 2
    said = mistake.said
    places = {"folder": tmp_path, "commands": ", ".join([*cli.TRAINING, *cli._OTHERS]), "configs": ", ".join(names())}
    for place, value in places.items():
        said = said.replace(f"{{{place}}}", str(value))
    assert told == f"lit_probsft: error: {said}\n"
    assert content(tmp_path) == before


def test_each_mistake_has_a_name_and_a_message_of_its_own() -> None:
    rows = [row.values[0] for row in tables()]
    assert len(rows) >= 250
    assert len({(row.typed, row.config, repr(row.files), row.before) for row in rows}) == len(rows)


JARGON = (
    r"jsonargparse|Union subtypes|NestedArg|Namespace\(|<class '|MisconfigurationException|Traceback|NoneType"
    r"|not a valid input|Expected a path but|Subclass types|object at 0x|[Yy]ou (selected|have passed)"
)


def test_no_message_speaks_like_a_library() -> None:
    for row in tables():
        assert not re.search(JARGON, row.values[0].said), row.id


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            "export nowhere.ckpt out",
            "CKPT: expected a checkpoint, there is none at nowhere.ckpt",
            marks=pytest.mark.slow,  # tests/cli/test_fit.py asks a shell in the default suite
        ),
        pytest.param(
            "fit --config c.yaml --data.batch_size four",
            "data.batch_size: expected a whole number, got 'four'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "fit --config c.yaml --data.batch_size 0",
            "data.batch_size: expected at least 1, got 0",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_shell_sees_the_message_alone(words: str, message: str, tmp_path: Path) -> None:
    mistaken.furnish(tmp_path, None, {})
    done = subprocess.run(
        [sys.executable, "-m", "lit_probsft", *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"lit_probsft: error: {message}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["--debug", "export", "nowhere.ckpt", "out"],
        ["export", "nowhere.ckpt", "--debug", "out"],
        ["fit", "--config", "c.yaml", "--data.batch_size", "four", "--debug"],
        ["preview", "--debug", "--rows", "0"],
    ],
)
def test_debug_shows_the_traceback_as_well(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mistaken.furnish(tmp_path, None, {})
    without = [word for word in words if word != "--debug"]
    status, message = end_of(without, monkeypatch, capsys)
    assert (status, message.count("\n")) == (2, 1)
    status, told = end_of(words, monkeypatch, capsys)
    assert status == 2
    assert told.startswith("Traceback (most recent call last)") or "\nTraceback (most recent call last)" in told
    assert told.endswith(message)
    monkeypatch.setenv("LIT_PROBSFT_DEBUG", "1")
    assert "Traceback" in end_of(without, monkeypatch, capsys)[1]
    monkeypatch.setenv("LIT_PROBSFT_DEBUG", "0")
    assert end_of(without, monkeypatch, capsys)[1] == message


def test_main_takes_debug_and_raises_all_the_same() -> None:
    with pytest.raises(UserError, match="^CKPT: "):
        main(["export", "nowhere.ckpt", "out", "--debug"])


def test_more_devices_than_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mistaken.furnish(tmp_path, None, {})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    flags = ["--trainer.accelerator=cuda", "--trainer.devices=4"]
    status, told = end_of(["fit", "--config", "c.yaml", *flags], monkeypatch, capsys)
    assert status == 2
    assert told == "lit_probsft: error: trainer.devices: expected at most 2, the GPUs that torch can use, got 4\n"


# --- the form of a message


PLACE = r"(--)?[A-Za-z_{][\w.\[\]{}/-]*( and --\w+)?( line {})?"
"""An argument or a place: a flag, a dotted name, CKPT; or one of them in a variable."""

REASONED = "|".join(
    (
        r"no (such )?(file|folder|split|function|option)\b|there is no such option",
        r"(\S+ )?(line \{\}: )?not (valid|a readable|possible)|(\{\}\S*: )?not (valid|a readable)",
        r".*\b(cannot (be read|be imported|import|write)|could not (be written|be uploaded|start))",
        r".* (is|are) not (supported|installed|in the tokenizer)|\{\} was written by DeepSpeed, which is not installed",
        r"\{\} (refuses its|needs|raised|is a folder that|is there and|changes its)|the run folder \{\} exists",
        r"(it|its|what|the (tokenizer|model's chat \w+|mask|hub|assistant's \w+|talk)|a (text|list|stream)) [a-z]",
        r"plain text (has|ends)|kept (would|is)|fsdp2 shards",
    )
)
"""How a message may go on that gives a reason and need not say what was expected."""

HANDED_ON = r"[\w.{}\[\]-]*(: ?)?\{\}(\{\}|, got .*|;.*| \(.*| Name .*)?"
"""Another's message, with a place in front or a word behind it."""


def texts(node: ast.expr) -> list[str]:
    """What an expression may say, `{}` where it puts a value in; nothing where it is another's message."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    return []


def wrong_messages(source: str) -> list[str]:
    """The messages raised in `source` that are not of the house's form: `argument: expected this, got that`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError" and node.args:
            for text in texts(node.args[0]):
                handed_on = re.fullmatch(HANDED_ON, text, re.DOTALL)
                place, colon, rest = text.partition(": ")
                formed = (
                    colon and re.fullmatch(PLACE, place) and re.match(rf"(.*\bexpected\b|{REASONED})", rest, re.DOTALL)
                )
                if not (handed_on or formed):
                    found.append(text)
    return found


@pytest.mark.parametrize(
    "source",
    [
        'raise UserError("something is wrong")',
        'raise UserError(f"{error} is wrong")',
        'raise UserError("batch size: expected 3")',
        'raise UserError("data.batch_size: bad value")',
        'raise UserError("data.batch_size: expected 1" if x else "oh")',
    ],
)
def test_the_form_is_looked_at(source: str) -> None:
    assert len(wrong_messages(source)) == 1


def test_every_message_has_the_form_of_the_house() -> None:
    root = Path(lit_probsft.__file__).parent
    found = {str(path.relative_to(root)): wrong_messages(path.read_text()) for path in sorted(root.rglob("*.py"))}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
