"""A text is a text, whichever way it comes: by flag, by file, or by the config.yaml of a run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_probsft.cli.config.composition import Composer
from lit_probsft.cli.config.jsonargparse_internals import flags_of
from lit_probsft.cli.config.scalars import Scalar, dump, load, plain, read
from lit_probsft.cli.configs import names, path_of
from lit_probsft.cli.fit import ProbSFTCLI

STRANGE = (
    "1e3", "77950e8", "# Role: a poet", "0e12345", "null", "[a]", "{q}", "a: b", " leading", "2024-01-01", "1_000",
    "0x1F", "1:30", "00:12:00:00", ".inf", ".nan", "+.5", "1.", "12345678" * 800, "Null", "~", "true", "no", "[",
    "{a: b", "a:", "- a", "'quoted'", '"', "trailing ", "", " ", "a\nb", "\n", "a\n\n b\n", "\t", "a # b", "!a", "&a",
    "*a", "%a", "@a", "`a", "|", ">", "?", "? a", "-", "--", "--- a", "---", "...", "=", "<<", "café", "😀", "\x85",
    "\u2028", "\ufeffa", "\x7f", "\r\n", "a\rb", "\x1b[0m", "\\n", "{{ a }}", "{% a %}", "${HOME}", "Rows", "c.yaml",
    "a" * 300,
)  # fmt: skip
"""Texts that YAML, a shell or a parser could take for something else."""

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)

PLACES = (
    "runs_dir",
    "trainer.default_root_dir",
    "data.chat_template",
    "data.train.system",
    "model.model.revision",
)
BASE = ["--model.model", "folder", "--data.train", "train.jsonl"]


class _Parsed(ProbSFTCLI):
    """Parses and builds nothing."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def seed(self) -> None: ...

    def run_command(self, command: str) -> None: ...

    def parsed(self, *words: str) -> tuple[Any, str]:
        """The configuration, and as config.yaml has it."""
        self.parse_arguments(self.parser, ["fit", *words])
        config = self.config["fit"]
        config.pop("config")
        return config, self.parser_of("fit").dump(config, skip_unset=False, skip_validation=True)

    def texts(self, *words: str) -> tuple[list[Any], str]:
        """The text in each place and in `data.add_tokens`, and config.yaml."""
        config, text = self.parsed(*BASE, *words)
        data, model = config.data.init_args, config.model.init_args
        found = [
            config.runs_dir,
            config.trainer.default_root_dir,
            data.chat_template,
            data.train.init_args.system,
            model.model.init_args.revision,
            *(data.add_tokens or []),
        ]
        return found, text


@pytest.fixture(scope="module")
def cli() -> _Parsed:
    return _Parsed(["fit", *BASE])


@given(st.one_of(st.sampled_from(STRANGE), TEXTS))
@settings(max_examples=40, deadline=None)
def test_a_flags_text_is_the_options_text(cli: _Parsed, text: str) -> None:
    words = [f"--{place}={text}" for place in PLACES]
    content = Composer("fit", *flags_of(cli.parser_of("fit"))).compose([*BASE, *words]).content
    found = [
        content["runs_dir"],
        content["trainer"]["default_root_dir"],
        content["data"]["init_args"]["chat_template"],
        content["data"]["init_args"]["train"]["init_args"]["system"],
        content["model"]["init_args"]["model"]["init_args"]["revision"],
    ]
    assert found == [text, *[None if text == "null" else text] * 4]


@pytest.mark.filterwarnings("ignore")
@given(st.lists(TEXTS, min_size=5, max_size=15))
@settings(max_examples=2, deadline=None)
@example([*STRANGE])
def test_any_text_comes_back_by_flag_by_file_and_by_config_yaml(cli: _Parsed, texts: list[str]) -> None:
    values: dict[str, Any] = dict(zip(PLACES, texts, strict=False)) | {"data.add_tokens": texts[len(PLACES) :]}
    flags = [f"--{place}={value if isinstance(value, str) else json.dumps(value)}" for place, value in values.items()]
    by_flag, _ = cli.texts(*flags)
    assert by_flag == [None if text == "null" and 0 < index < 5 else text for index, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8", newline="")
        by_file, config = cli.texts("--config", str(file))
        assert by_file == texts
        file.write_text(config, encoding="utf-8", newline="")
        assert cli.texts("--config", str(file))[0] == texts


@pytest.mark.filterwarnings("ignore")
def test_a_text_of_a_file_needs_no_quotes(cli: _Parsed, tmp_path: Path) -> None:
    spellings = ["1e3", "77950e8", "2024-01-01", "yes", "="]
    file = tmp_path / "c.yaml"
    file.write_text("\n".join(f"{place}: {spelling}" for place, spelling in zip(PLACES, spellings, strict=True)))
    assert cli.texts("--config", str(file))[0] == spellings


DDP = "lightning.pytorch.strategies.DDPStrategy"
IN_DEFAULT = ("mixture", "parallel/fsdp2_offload")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--config", str(path_of(name))], id=name, marks=() if name in IN_DEFAULT else pytest.mark.slow)
        for name in names()
    ]
    + [pytest.param(["--trainer.strategy", DDP, "--trainer.callbacks", "LearningRateMonitor"], id="DDPStrategy")],
)
def test_a_configuration_comes_back_from_config_yaml(cli: _Parsed, words: list[str], tmp_path: Path) -> None:
    config, text = cli.parsed(*BASE, *words)
    file = tmp_path / "c.yaml"
    file.write_text(text)
    again, text_again = cli.parsed("--config", str(file))
    assert text_again == text
    assert again == config


@given(st.one_of(st.sampled_from(STRANGE), TEXTS))
@settings(max_examples=100, deadline=None)
def test_a_text_is_written_so_that_every_reader_takes_it_for_one(text: str) -> None:
    assert read(yaml.safe_dump({"a": text}))["a"].text == text
    written = dump({"a": text})
    assert plain(read(written)) == load(written) == yaml.safe_load(written) == {"a": text}
    quoted = "'" + text.replace("'", "''") + "'"
    if "\n" not in text and text.isprintable():
        assert read(f"a: {quoted}") == {"a": Scalar(text, text)}


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS, st.lists, max_leaves=5)
)
@settings(max_examples=50, deadline=None)
def test_values_come_back_as_they_are_written(value: Any) -> None:
    assert load(dump({"a": value})) == plain(read(dump({"a": value}))) == {"a": value}
