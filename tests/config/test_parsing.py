from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from tinystories_hf.config.flags import StrictParser
from tinystories_hf.config.parsing import (
    Setting,
    _describe,
    build_dataclass,
    convert_setting,
    merge_settings,
    option,
)
from tinystories_hf.config.yaml_files import read_yaml, yaml_layers
from tinystories_hf.core.errors import UserError


@dataclass(frozen=True)
class Example:
    name: str = option("a name")
    rate: float = option("a rate", 0.5)
    pin: str | None = option("what belongs to the name", None, belongs_to="name")
    words: list[str] = option("some words", ["a"])
    flag: bool = option("a flag", False)


KNOWN = {declared.name: declared for declared in fields(Example)}


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("5e-4", float, 5e-4),
        (3, float, 3.0),
        ("12", int, 12),
        (True, bool, True),
        ("false", bool, False),
        (None, int | None, None),
        ("null", str | None, None),
        ("auto", bool | Literal["auto"], "auto"),
        (False, bool | Literal["auto"], False),
        (["x", "y"], list[str], ["x", "y"]),
        ("true", bool | str, True),
        ("runs/xs/checkpoint-5", bool | str, "runs/xs/checkpoint-5"),
    ],
)
def test_values_convert_to_their_type(value: Any, hint: Any, expected: Any) -> None:
    converted = convert_setting(Setting(value, "here"), hint)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("fast", float),
        (True, float),
        (True, int),
        (2.5, int),
        ("2.5", int),
        (float("nan"), float),
        ("inf", float),
        ("yes please", bool),
        (1, bool),
        (7, str),
        ("one", list[str]),
        ([1], list[str]),
        ("warm", Literal["hot", "cold"]),
        (None, int),
        ({"a": 1}, float),
        (10**400, float),
        (2**63, int),
        ("9" * 400, int),
        ("a\0b", str),
        (["caf\udce9"], list[str]),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_source_and_type(
    value: Any, hint: Any
) -> None:
    with pytest.raises(UserError, match=r"f\.yaml: key: ") as error:
        convert_setting(Setting(value, "f.yaml: key"), hint)
    assert _describe(hint) in str(error.value)


def test_a_value_of_any_size_is_shortened_in_the_error() -> None:
    bomb: list[Any] = ["x"]
    for _ in range(20):
        bomb = [bomb] * 9
    for value in (bomb, 2**99_999, "x" * 100_000):
        with pytest.raises(UserError, match=r"f\.yaml: key: expected a number, got ") as error:
            convert_setting(Setting(value, "f.yaml: key"), float)
        assert len(str(error.value)) < 2000


def test_yaml_with_a_base_overrides_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\nrate: 1\n")
    (tmp_path / "delta.yaml").write_text("base: base.yaml\nrate: 2\n")
    merged = merge_settings(yaml_layers(tmp_path / "delta.yaml"), KNOWN)
    assert build_dataclass(Example, merged) == Example(name="base", rate=2.0)


def test_command_line_wins_even_when_it_repeats_a_default(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nrate: 9\n")
    parser = StrictParser("")
    parser.add_dataclass("example", Example)
    flags = parser.parse_layer(["--rate", "0.5"])
    merged = merge_settings([*yaml_layers(tmp_path / "a.yaml"), flags], KNOWN)
    assert build_dataclass(Example, merged).rate == 0.5


def test_a_pin_is_reset_when_the_setting_it_belongs_to_changes() -> None:
    yaml = {"name": Setting("a", "yaml"), "pin": Setting("1", "yaml")}
    assert build_dataclass(Example, merge_settings([yaml], KNOWN)).pin == "1"
    assert (
        build_dataclass(Example, merge_settings([yaml, {"name": Setting("b", "flag")}], KNOWN)).pin
        is None
    )
    both = {"name": Setting("b", "flag"), "pin": Setting("2", "flag")}
    assert build_dataclass(Example, merge_settings([yaml, both], KNOWN)).pin == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "must contain"),
        ("name: [\n", "not valid YAML"),
        ("name: a\nname: b\n", "duplicate key 'name'"),
        ("base: 3\nname: a\n", "expected the path of a YAML file"),
        ("base: self.yaml\n", "leads back to itself"),
        ("base: nowhere.yaml\n", "configuration file .* not found"),
        ('base: "a\\0b"\n', "configuration file .* not found"),
        (f"base: {'x' * 300}\n", "File name too long|not found"),
        ("name: 2024-02-30\n", "not valid YAML: day is out of range"),
        ("name: !!int ''\n", "not valid YAML"),
        ("!!map text\n", "not valid YAML"),
        ("name: &a [*a]\n? *a\n: b\n", "not valid YAML"),
        ("name: " + "[" * 1000, "nested too deeply"),
        ("1: a\n", "the key 1 is not the name of a setting"),
        ("name: a\n" + "#" * 300_000, "too large for a configuration file"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_it(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        yaml_layers(path)


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: Zoë\n".encode("latin-1"))
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(path)


def test_an_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"f\.yaml: rat: unknown setting; did you mean rate\?"):
        merge_settings([{"rat": Setting(1, "f.yaml: rat")}], KNOWN)


def test_an_unknown_flag_suggests_the_nearest_and_nothing_is_abbreviated() -> None:
    parser = StrictParser("")
    parser.add_dataclass("example", Example)
    with pytest.raises(UserError, match=r"unknown flag --nam; did you mean --name\?"):
        parser.parse_layer(["--nam", "x"])


def test_a_value_that_begins_with_a_dash_is_accepted_or_the_error_shows_the_syntax() -> None:
    parser = StrictParser("")
    parser.add_dataclass("example", Example)
    assert parser.parse_layer(["--name=---"])["name"].value == "---"
    with pytest.raises(UserError, match="if the value begins with -, write --name=VALUE"):
        parser.parse_layer(["--name", "---"])


def test_a_setting_without_a_default_is_required() -> None:
    with pytest.raises(UserError, match="name is not set"):
        build_dataclass(Example, {})


def test_lists_and_bare_flags_come_from_the_command_line() -> None:
    parser = StrictParser("")
    parser.add_dataclass("example", Example)
    flags = parser.parse_layer(["--name", "n", "--words", "x", "y", "--flag"])
    assert build_dataclass(Example, merge_settings([flags], KNOWN)) == Example(
        name="n", words=["x", "y"], flag=True
    )
