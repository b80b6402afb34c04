"""`--help` says what the classes say, and imports none of them."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lit_probsft.cli.commands import TRAINING, main
from lit_probsft.cli.config import hints
from lit_probsft.cli.config.jsonargparse_internals import flags_of
from lit_probsft.cli.fit import ProbSFTCLI
from lit_probsft.cli.help import options
from lit_probsft.cli.help.pages import COMMON, overview
from lit_probsft.cli.help.source import describe
from lit_probsft.cli.help.texts import first_sentence, from_library, in_yaml
from lit_probsft.cli.help.values import hint_of

CLASSES = sorted(path for path, _ in options.known_classes().values())


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("path", CLASSES)
def test_the_source_says_what_the_signature_says(path: str) -> None:
    found, parameters = describe(path), dict(inspect.signature(imported(path)).parameters)
    assert found is not None

    assert list(found.fields) == list(parameters)
    known = hints.options_of(imported(path)) or {}
    for name, field in found.fields.items():
        assert field.text, f"{path}.{name} is not documented"
        default = parameters[name].default
        assert (field.default is None) == (default is inspect.Parameter.empty)
        if isinstance(field.default, ast.Constant):
            assert field.default.value == default
        if path.startswith("lit_probsft."):
            assert hints.described(hint_of(field)) == hints.described(known[name].hint)


@pytest.mark.parametrize("base", ["objectives.base.Objective", "data.rows.source.Source", "model.source.ModelSource"])
def test_the_classes_of_an_option_are_those_of_the_parser(base: str) -> None:
    import_module("lit_probsft.cli.fit")  # imports every class that has a short name
    family = {member for member in hints.members(imported(f"lit_probsft.{base}")) if member.__module__[:4] == "lit_"}
    assert {*options.members(f"lit_probsft.{base}")} == {f"{one.__module__}.{one.__qualname__}" for one in family}


class _Flags(ProbSFTCLI):
    """Builds the parser only."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        self.flags = flags_of(self.parser_of(self.command))[0]
        raise EOFError


@pytest.mark.parametrize("command", ["fit", pytest.param("validate", marks=pytest.mark.slow), "predict"])
def test_every_flag_has_an_entry(command: str) -> None:
    cli = _Flags.__new__(_Flags)
    with pytest.raises(EOFError):
        cli.__init__([command])  # type: ignore[misc]
    flags = {flag for flag in cli.flags if not flag.endswith("help")} - {"model", "data", "trainer"}
    entries = {option.place for option in options.all_options(command)}
    assert flags <= entries
    assert {entry for entry in entries if not entry.startswith(("model.", "data."))} <= flags


@pytest.mark.parametrize("command", COMMON)
def test_the_overview_is_short_and_explains_each_flag(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = overview(command, TRAINING[command])
    assert len(text.splitlines()) < 72
    assert max(map(len, text.splitlines())) <= 100
    for place in (place for places in COMMON[command].values() for place in places):
        option = options.option_at(place)
        assert option is not None
        assert option.text
        assert f"  --{place} " in text


def test_help_answers_without_the_imports_that_take_seconds() -> None:
    calls = "".join(f"main(['fit', '--help', {topic!r}])\n" for topic in ("", "model.optimizer"))
    check = "import sys\nassert not {'torch', 'lightning', 'transformers', 'jsonargparse'} & sys.modules.keys()"
    code = f"from lit_probsft.cli import main\n{calls}{check}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_option_shows_the_default_that_its_owner_gives_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--help", "model.optimizer"])
    of_option = capsys.readouterr().out
    main(["preview", "--help=AdamW"])
    of_class = capsys.readouterr().out
    assert "--model.optimizer.lr  a number (default: 2e-05)" in of_option
    assert "  lr  a number (default: 0.001)" in of_class
    assert "torch.optim.SGD" in of_option


def test_a_first_sentence_of_several_lines_is_shown_whole() -> None:
    found = describe("lit_probsft.objectives.RunningPower")
    assert found is not None
    assert first_sentence(found.text).endswith("times the mean p of the step's tokens")


def test_only_the_first_process_prints_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    main(["fit", "--help"])
    assert capsys.readouterr().out == ""


def test_an_option_of_several_classes_is_explained_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--help", "model.objective.alpha"])
    shown = capsys.readouterr().out.splitlines()
    owners = [line.removesuffix(":") for line in shown if not line.startswith(" ")]
    assert {"EAFT", "Power", "TrSFT"} <= {*owners}
    assert sum("--model.objective.alpha  a number" in line for line in shown) == len(owners)


def test_a_class_of_the_user_is_read_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_help.py").write_text(
        "from dataclasses import dataclass\nfrom lit_probsft.objectives import Power\nraise SystemExit\n\n"
        '@dataclass(frozen=True)\nclass Mine(Power):\n    """Mine.\n\n    Args:\n        size: of it.\n    """\n\n'
        "    size: int | None = None\n"
    )
    main(["fit", "--help", "own_help.Mine"])
    shown = capsys.readouterr().out
    assert "  alpha  a number (default: 1.0)" in shown
    assert "  size  a whole number or null (default: null)\n      of it." in shown


def test_sentences_of_libraries_lose_markup_and_defaults() -> None:
    assert from_library("Number of GPUs, e.g. :class:`~a.B`. More. Default: ``1``.") == "number of GPUs, e.g. `a.B`"
    assert from_library("Learning rate (default: (0.9, 1)). A tensor.") == "learning rate"
    assert from_library("The paper `On Adam`_. More.") == "the paper `On Adam`"
    assert in_yaml("If `True`, as None does; `Nonesuch`") == "If `true`, as null does; `Nonesuch`"
    assert from_library("Stop then. Disabled by default (-1).") == "stop then"
    assert first_sentence("one to 1.5, i.e. a half; two. Three.") == "one to 1.5, i.e. a half; two"
