"""The private names and the error text of jsonargparse that lit_probsft.cli.config.jsonargparse_internals relies on."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, _typehints

import lit_probsft.cli.config.parser  # noqa: F401  sets the dumper
from lit_probsft.cli.config.instantiation import Builder, call, with_places
from lit_probsft.cli.config.jsonargparse_internals import flags_of, literal_values, place_and_reason
from lit_probsft.errors import UserError

CHANGED = "jsonargparse has changed; adapt lit_probsft/cli/config/jsonargparse_internals.py: "


class Base:
    pass


class Rows(Base):
    def __init__(self, prompt: str | None = None, limit: int = 1) -> None:
        if limit < 1:
            raise UserError("limit", f"expected at least 1, got {limit}")
        self.prompt, self.limit = prompt, limit


class Pair(Base):
    def __init__(self, parts: dict[str, Base | str], size: int | str = 0) -> None:
        self.parts = parts


@dataclass
class Options:
    number: int = 1
    names: list[str] = field(default_factory=list)


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--rows", type=Base | str | None)
    made.add_argument("--options", type=Options, default=Options())
    made.add_argument("--resume", action="store_true")
    made.add_argument("--config", action="config")
    return made


def test_flags_have_type_hints_and_switches_have_none() -> None:
    flags, switches = flags_of(parser())
    assert flags["rows"] == Base | str | None, CHANGED + "ArgumentParser._actions or Action._typehint"
    assert flags["options"] is None, CHANGED + "a dataclass is no longer a group of flags"
    assert flags["options.number"] is int
    assert flags["resume"] is bool
    assert {"resume", "print_config"} <= switches, CHANGED + "--print_config has another name"
    assert "rows" not in switches


@pytest.mark.parametrize("text", ["3", "1e3", "null", "# a", "a: b", "[a", __file__])
def test_a_text_of_a_configuration_is_a_text(text: str) -> None:
    for name in ("parse_value_or_config", "basic_json_or_yaml_load", "adapt_subconfig_path", "not_a_subconfig_path"):
        assert hasattr(_typehints, name), CHANGED + f"_typehints.{name}"
    rows = {"class_path": f"{__name__}.Rows", "init_args": {"prompt": text}}
    content = {"rows": {"class_path": f"{__name__}.Pair", "init_args": {"parts": {"a": rows}, "size": text}}}
    before = _typehints.parse_value_or_config
    with literal_values():
        config = parser().parse_object(content)
        for arguments in (config.rows.init_args.as_dict(), yaml.safe_load(parser().dump(config))["rows"]["init_args"]):
            assert (arguments["parts"]["a"]["init_args"]["prompt"], arguments["size"]) == (text, text)
    assert _typehints.parse_value_or_config is before


def test_an_error_message_names_its_option() -> None:
    with pytest.raises(ArgumentError) as caught:
        parser().parse_args(["--options.number=four"])
    place, reason = place_and_reason(str(caught.value))
    assert 'Parser key "options.number":' in str(caught.value), CHANGED + "the text `Parser key`"
    assert place == "options.number"
    assert "Expected a <class 'int'>" in reason
    assert "\n" not in reason


def test_a_constructors_error_names_its_place() -> None:
    rows = {"class_path": f"{__name__}.Rows", "init_args": {"limit": 0}}
    content = {"class_path": f"{__name__}.Pair", "init_args": {"parts": {"a": "x", "b": rows}}}
    config = parser().parse_object({"rows": content})
    builder = Builder()
    with pytest.raises(ValueError, match="expected at least 1"):
        parser().instantiate(with_places(config), instantiators=[(builder.around(call), object, True)])
    assert builder.refused, CHANGED + "dict_kwargs no longer reach the instantiator"
    assert str(builder.refused[0]) == "rows.parts.b.limit: expected at least 1, got 0"


def test_the_marks_of_places_are_not_left_in_the_configuration() -> None:
    config = Namespace(data=Namespace(train=Namespace(class_path="Rows", init_args=Namespace())))
    with_places(config)
    assert config.data.train == Namespace(class_path="Rows", init_args=Namespace())


class Unit(StrEnum):
    FIRST = "a"


class Timer(Base):
    def __init__(self, interval: str = Unit.FIRST, unit: Unit = Unit.FIRST) -> None:
        pass


def test_members_of_enumerations_are_dumped_as_they_are_parsed() -> None:
    config = parser().parse_args([f"--rows={__name__}.Timer"])
    arguments = yaml.safe_load(parser().dump(config))["rows"]["init_args"]
    assert arguments == {"interval": "a", "unit": "FIRST"}
    assert Enum not in yaml.SafeDumper.yaml_multi_representers
