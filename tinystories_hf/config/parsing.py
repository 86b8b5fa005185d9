"""Strict, layered settings: dataclass defaults < YAML (with `base:`) < command line.

A layer maps a field's name to its raw value and says where it came from, so that every error can
name the file or the flag. Nothing here knows which settings exist: `arguments` does.
"""

from __future__ import annotations

import argparse
import math
import re
import reprlib
import sys
import types
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from tinystories_hf.config.flag_hints import suggest_flag
from tinystories_hf.core.errors import UserError

_T = TypeVar("_T")

# The longest file of ours has 2 kB. PyYAML reads 100 kB a second, and slower what is nested.
MAX_YAML_BYTES = 1 << 18


def option(help: str, default: Any = MISSING, *, belongs_to: str | None = None) -> Any:  # noqa: A002
    """Declare a dataclass field that is a setting.

    `belongs_to` names the setting that this one qualifies (a revision belongs to a dataset): a
    layer that sets the other and not this one puts this one back to its default, so that a pin in
    YAML never applies to a dataset chosen on the command line.
    """
    metadata = {"help": help, "belongs_to": belongs_to}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """A raw value and the place that set it, for error messages."""

    value: Any
    where: str


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; this loader refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for name, _ in node.value:
            key = self.construct_object(name, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML refuses it
            if key in seen:
                raise UserError(f"{self.name}: the key {brief(key)} stands twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one flat YAML file of settings.

    Raises:
        UserError: the file is missing, cannot be read, is too long, empty, not UTF-8, not YAML, not
            a mapping, or repeats a key.
    """
    try:
        if not path.is_file():
            raise UserError(
                f"no configuration file at {path}; see configs/ for those that are shipped"
            )
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path} is too long for a file of settings; is it the right one?")
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_UniqueKeyLoader)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; settings are `key: value` lines") from None
    except Exception as error:  # PyYAML lets through what Python says to `!!int x` or 2024-02-30
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        raise UserError(f"{path} is empty; give at least one setting, such as `base: xs.yaml`")
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {brief(key)} is not the name of a setting")
    return content


def yaml_layers(path: Path, *, _below: tuple[Path, ...] = ()) -> list[dict[str, Setting]]:
    """Return the layers of a YAML file, the deepest `base:` first.

    A `base` is relative to the file that names it.

    Raises:
        UserError: as `read_yaml`, or the bases form a ring.
    """
    content = read_yaml(path)
    if path.resolve() in _below:
        raise UserError(f"{path}: its `base:` leads back to itself; remove one of the two")
    base = content.pop("base", None)
    layers: list[dict[str, Setting]] = []
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base: expected the name of a YAML file, got {brief(base)}")
        layers = yaml_layers(path.parent / base, _below=(*_below, path.resolve()))
    layers.append({key: Setting(value, f"{path}: {key}") for key, value in content.items()})
    return layers


def merge_settings(
    layers: Sequence[Mapping[str, Setting]], known: Mapping[str, Field[Any]]
) -> dict[str, Setting]:
    """Lay the layers over one another, the last one winning.

    Raises:
        UserError: a layer has a key that no dataclass knows.
    """
    merged: dict[str, Setting] = {}
    for layer in layers:
        for key, setting in layer.items():
            if key not in known:
                raise UserError(f"{setting.where}: unknown setting{suggest_flag(key, known)}")
        for key, declared in known.items():
            if declared.metadata["belongs_to"] in layer and key not in layer:
                merged.pop(key, None)
        merged.update(layer)
    return merged


def build_dataclass(cls: type[_T], settings: Mapping[str, Setting]) -> _T:
    """Convert the settings of one dataclass to their declared types and construct it.

    Raises:
        UserError: a value has the wrong type, or a setting without a default is missing.
    """
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for declared in fields(cls):  # type: ignore[arg-type]
        name = declared.name
        if name in settings:
            values[name] = convert_setting(settings[name], hints[name])
        elif declared.default is MISSING and declared.default_factory is MISSING:
            raise UserError(
                f"{name} is not set; add `{name}: ...` to the configuration or pass --{name}"
                f" ({declared.metadata['help']})"
            )
    return cls(**values)


def convert_setting(setting: Setting, hint: Any) -> Any:
    """Convert a raw value from YAML or the command line to a declared type.

    Numbers may arrive as text: YAML 1.1 reads `5e-4` as a string, and so does a shell. A whole
    number has at most 64 bits, as everything that takes one expects.

    Raises:
        UserError: the value does not fit the type; the message names the place and the type.
    """
    members = _members(hint)
    if setting.value is None or setting.value in ("null", "none", "None"):
        if type(None) in members:
            return None
        raise UserError(f"{setting.where}: needs a value ({_describe(hint)})")
    for member in members:
        converted = _convert_one(setting.value, member)
        if converted is not None:
            return converted
    raise UserError(f"{setting.where}: expected {_describe(hint)}, got {brief(setting.value)}")


def _members(hint: Any) -> tuple[Any, ...]:
    union = get_origin(hint) in (Union, types.UnionType)
    return get_args(hint) if union else (hint,)


def _convert_one(value: Any, hint: Any) -> Any:
    """Return the value as `hint`, or None where it does not fit."""
    if get_origin(hint) is Literal:
        return value if value in get_args(hint) else None
    if get_origin(hint) is list:
        fits = isinstance(value, list) and all(_is_text(item) for item in value)
        return list(value) if fits else None
    if hint is bool:
        if isinstance(value, str):
            return {"true": True, "false": False}.get(value.lower())
        return value if isinstance(value, bool) else None
    if hint is str:
        return value if _is_text(value) else None
    if hint in (int, float) and isinstance(value, (int, float, str)):
        return None if isinstance(value, bool) else _number(value, hint)
    return None


def local_path(key: str, name: str) -> Path:
    """Return the path that a setting names, `~` being a home directory.

    Raises:
        UserError: `~name` where nobody has that name.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}: {name}: {error}") from None


# NUL, and halves of characters: what a shell makes of a byte that is not UTF-8.
_IN_NO_FILE = re.compile("[\0\ud800-\udfff]")


def _is_text(value: Any) -> bool:
    """Tell whether a value is text that a file, or a file's name, can hold."""
    return isinstance(value, str) and not _IN_NO_FILE.search(value)


def _number(value: float | str, kind: type[int] | type[float]) -> float | None:
    if kind is int and isinstance(value, float):
        return None
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        return None
    fits = abs(number) < 2**63 if kind is int else math.isfinite(number)
    return number if fits else None


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 3, 60, 60, 60


def brief(value: Any) -> str:
    """Return a raw value as Python writes it, cut short: a line of YAML can hold billions."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes out no whole number of over 4,300 digits
        return f"a {type(value).__name__} that is too large to show"


def _describe(hint: Any) -> str:
    """Say in words what a type takes, for help texts and errors."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    parts = []
    for member in _members(hint):
        if get_origin(member) is Literal:
            parts += [str(choice) for choice in get_args(member)]
        elif get_origin(member) is list:
            parts.append("a list of texts")
        elif member is type(None):
            parts.append("null")
        else:
            parts.append(words[member])
    return ", ".join(parts[:-1]) + " or " + parts[-1] if len(parts) > 1 else parts[0]


class StrictParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError`, never abbreviates, and hides unset flags."""

    def __init__(self, description: str, add_help: bool = True) -> None:
        super().__init__(
            usage="%(prog)s [--FLAG VALUE ...]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=add_help,
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        if found := re.fullmatch(r"argument (--\w+): expected .*one argument", message):
            message += f"; a value that begins with - is written {found[1]}=VALUE"
        raise UserError(f"{message}; --help lists all flags")

    def add_dataclass(
        self,
        title: str,
        cls: type[Any],
        shown: Mapping[str, Setting] | None = None,
        leave_out: Collection[str] = (),
    ) -> None:
        """Add a flag for each field but some; `shown` is what the help gives as defaults."""
        group = self.add_argument_group(title)
        hints = get_type_hints(cls)
        for declared in fields(cls):
            if declared.name in leave_out:
                continue
            hint = hints[declared.name]
            words: dict[str, Any] = {"metavar": _metavar(hint)}
            if get_origin(hint) is list or any(get_origin(m) is list for m in _members(hint)):
                words["nargs"] = "+"
            elif bool in _members(hint):
                words |= {"nargs": "?", "const": "true"}
            group.add_argument(
                f"--{declared.name}",
                help=f"{declared.metadata['help']} {_default_text(declared, shown or {})}".replace(
                    "%", "%%"
                ),
                **words,
            )

    def parse_layer(self, argv: Sequence[str] | None) -> dict[str, Setting]:
        """Parse the command line into a layer of raw values.

        Raises:
            UserError: an unknown or misspelt flag, with what to give instead.
        """
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            known = [action.dest for action in self._actions if action.dest != "help"]
            flag = unknown[0].partition("=")[0]  # the value may be a secret
            if flag.endswith("token"):
                raise UserError(f"{flag}: a Hub token is no flag; use `hf auth login` or HF_TOKEN")
            raise UserError(f"unknown flag {flag}{suggest_flag(flag.lstrip('-'), known, '--')}")
        layer = {key: Setting(value, f"--{key}") for key, value in vars(namespace).items()}
        for setting in layer.values():
            for word in setting.value if isinstance(setting.value, list) else [setting.value]:
                if isinstance(word, str) and not _is_text(word):
                    encoding = sys.getfilesystemencoding()
                    raise UserError(f"{setting.where}: expected {encoding} text, got {brief(word)}")
        return layer


def _metavar(hint: Any) -> str:
    kinds = {bool: "BOOL", int: "N", float: "X", str: "TEXT"}
    names = [kinds.get(member, "TEXT") for member in _members(hint) if member is not type(None)]
    return names[0]


def _default_text(declared: Field[Any], shown: Mapping[str, Setting]) -> str:
    if declared.name in shown:
        value = shown[declared.name].value
        return f"[{value if isinstance(value, str) else brief(value)}]"
    if declared.default is not MISSING:
        return "" if declared.default is None else f"[{declared.default}]"
    if declared.default_factory is not MISSING:
        return f"[{declared.default_factory()}]"
    return "[required]"
