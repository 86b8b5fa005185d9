"""Strict parsing of settings from layers (YAML files, the command line) into dataclasses.

A layer maps the names of settings to raw values and their source, so that error messages can name
the file or the flag. Later layers override earlier ones. The settings themselves are declared in
`arguments`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import reprlib
import shlex
import sys
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from tinystories_hf.config.flag_hints import suggest_flag
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.shipped import as_installed, started_as

_T = TypeVar("_T")


def option(help: str, default: Any = MISSING, *, belongs_to: str | None = None) -> Any:  # noqa: A002
    """Declare a dataclass field that is a setting.

    Args:
        help: The help text of its flag.
        default: The default; without one, the setting is required.
        belongs_to: The setting that this one qualifies, such as `dataset` for a revision. A layer
            that sets the other one and not this one resets this one to its default, so that a
            revision pinned in YAML never applies to a dataset chosen on the command line. The
            other one can itself belong to a setting, which then resets both.
    """
    metadata = {"help": help, "belongs_to": belongs_to}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def settings_of(cls: type[Any]) -> list[Field[Any]]:
    """Return the fields of a dataclass that were declared by `option`."""
    return [declared for declared in fields(cls) if "help" in declared.metadata]


@dataclass(frozen=True)
class Setting:
    """A raw value and its source (a file and key, or a flag), for error messages."""

    value: Any
    where: str


def merge_settings(
    layers: Sequence[Mapping[str, Setting]], known: Mapping[str, Field[Any]]
) -> dict[str, Setting]:
    """Merge layers of settings; later layers override earlier ones.

    Raises:
        UserError: a layer contains a key that is not in `known`.
    """
    merged: dict[str, Setting] = {}
    for layer in layers:
        for key, setting in layer.items():
            if key not in known:
                raise UserError(f"{setting.where}: unknown setting{suggest_flag(key, known)}")
        for key in known:
            if key not in layer and _is_reset(key, layer, known):
                merged.pop(key, None)
        merged.update(layer)
    return merged


def _is_reset(key: str, layer: Mapping[str, Setting], known: Mapping[str, Field[Any]]) -> bool:
    """Return whether a layer sets what this setting belongs to, directly or through others."""
    above = known[key].metadata["belongs_to"] if key in known else None
    return above is not None and (above in layer or _is_reset(above, layer, known))


def build_dataclass(cls: type[_T], settings: Mapping[str, Setting]) -> _T:
    """Build a dataclass from settings, converting each value to the type of its field.

    Raises:
        UserError: a value has the wrong type, or a required setting is missing.
    """
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for declared in settings_of(cls):
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

    Numbers may be strings: YAML 1.1 reads `5e-4` as a string. Integers are limited to 64 bits.

    Raises:
        UserError: the value does not fit the type; the message names the source and the type.
    """
    members = _members(hint)
    if setting.value is None or setting.value in ("null", "none", "None"):
        if type(None) in members:
            return None
        raise UserError(f"{setting.where}: a value is required ({_describe(hint)})")
    for member in members:
        converted = _convert_one(setting.value, member)
        if converted is not None:
            return converted
    raise UserError(f"{setting.where}: expected {_describe(hint)}, got {brief(setting.value)}")


def _members(hint: Any) -> tuple[Any, ...]:
    union = get_origin(hint) in (Union, types.UnionType)
    return get_args(hint) if union else (hint,)


def _convert_one(value: Any, hint: Any) -> Any:
    """Return the value converted to `hint`, or None if it does not fit."""
    if get_origin(hint) is Literal:
        return value if value in get_args(hint) else None
    if get_origin(hint) is list:
        fits = isinstance(value, list) and all(_is_text(item) for item in value)
        return list(value) if fits else None
    if hint is dict:
        return _mapping(value)
    if hint is bool:
        if isinstance(value, str):
            return {"true": True, "false": False}.get(value.lower())
        return value if isinstance(value, bool) else None
    if hint is str:
        return value if _is_text(value) else None
    if hint in (int, float) and isinstance(value, (int, float, str)):
        return None if isinstance(value, bool) else _number(value, hint)
    return None


def _mapping(value: Any) -> dict[str, Any] | None:
    """Return a mapping from YAML or from the JSON of a flag, None if it is something else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    fits = isinstance(value, dict) and all(_is_text(key) for key in value)
    return value if fits else None


def local_path(key: str, name: str) -> Path:
    """Return the path given by a setting, with `~` expanded to the home directory.

    Raises:
        UserError: the path begins with `~name` and there is no such user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}: {name}: {error}") from None


# NUL, and surrogates, which Python uses for bytes of the command line that are not UTF-8.
_NOT_IN_FILES = re.compile("[\0\ud800-\udfff]")


def _is_text(value: Any) -> bool:
    """Return whether a value is text that can be written to a file or used as a file name."""
    return isinstance(value, str) and not _NOT_IN_FILES.search(value)


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
    """Return the `repr` of a raw value, shortened: YAML aliases can expand to billions of items."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return f"a {type(value).__name__} that is too large to print"


def _describe(hint: Any) -> str:
    """Describe a type for error messages."""
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    words[dict] = "a mapping, such as '{\"key\": 1}'"
    parts = []
    for member in _members(hint):
        if get_origin(member) is Literal:
            parts += [str(choice) for choice in get_args(member)]
        elif get_origin(member) is list:
            parts.append("a list of text values")
        elif member is type(None):
            parts.append("null")
        else:
            parts.append(words[member])
    return ", ".join(parts[:-1]) + " or " + parts[-1] if len(parts) > 1 else parts[0]


class StrictParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError`, allows no abbreviations and omits unset flags."""

    def __init__(self, description: str, add_help: bool = True) -> None:
        super().__init__(
            prog=" ".join(started_as()) if started_as()[0] == "tinystories" else None,
            usage="%(prog)s [--FLAG VALUE ...]",
            description=as_installed(description),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            add_help=add_help,
        )

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` instead of printing the usage and exiting."""
        if found := re.fullmatch(r"argument (--\w+): expected .*one argument", message):
            message += f"; if the value begins with -, write {found[1]}=VALUE"
        raise UserError(f"{message}; --help lists all flags")

    def add_dataclass(
        self,
        title: str,
        cls: type[Any],
        shown: Mapping[str, Setting] | None = None,
        leave_out: Collection[str] = (),
    ) -> None:
        """Add a flag for each field not in `leave_out`; `shown` overrides defaults in the help."""
        group = self.add_argument_group(title)
        hints = get_type_hints(cls)
        for declared in settings_of(cls):
            if declared.name in leave_out:
                continue
            group.add_argument(
                f"--{declared.name}",
                help=f"{declared.metadata['help']} {_default_text(declared, shown or {})}".replace(
                    "%", "%%"
                ),
                **_flag_words(hints[declared.name]),
            )

    def add_hidden(self, hints: Mapping[str, Any]) -> None:
        """Add flags that `--help` does not list, by their type hints."""
        for name, hint in hints.items():
            self.add_argument(f"--{name}", help=argparse.SUPPRESS, **_flag_words(hint))

    def parse_layer(self, argv: Sequence[str] | None) -> dict[str, Setting]:
        """Parse the command line into a layer of raw values.

        Raises:
            UserError: a flag is unknown; the message suggests another one.
        """
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            known = [action.dest for action in self._actions if action.dest != "help"]
            # Without the values, which may be secret, and which may begin with a dash.
            flags = [word.partition("=")[0] for word in unknown if re.match("--?[A-Za-z]", word)]
            for flag in flags:
                if flag.endswith("token"):
                    raise UserError(
                        f"{flag}: the Hub token cannot be a flag; use `hf auth login` or HF_TOKEN"
                    )
            hints = [
                f"unknown flag {flag}{suggest_flag(flag.lstrip('-'), known, '--')}"
                for flag in dict.fromkeys(flags or unknown[:1])
            ]
            raise UserError(". Also, ".join(hints))
        layer = {key: Setting(value, f"--{key}") for key, value in vars(namespace).items()}
        for setting in layer.values():
            for word in setting.value if isinstance(setting.value, list) else [setting.value]:
                if isinstance(word, str) and not _is_text(word):
                    encoding = sys.getfilesystemencoding()
                    raise UserError(f"{setting.where}: expected {encoding} text, got {brief(word)}")
        return layer


def _flag_words(hint: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a type."""
    words: dict[str, Any] = {"metavar": _metavar(hint)}
    if any(get_origin(member) is list for member in _members(hint)):
        words["nargs"] = "+"
    elif bool in _members(hint):
        words |= {"nargs": "?", "const": "true"}
    return words


def _metavar(hint: Any) -> str:
    kinds = {bool: "BOOL", int: "N", float: "X", str: "TEXT", dict: "JSON"}
    names = [kinds.get(member, "TEXT") for member in _members(hint) if member is not type(None)]
    return names[0]


def _default_text(declared: Field[Any], shown: Mapping[str, Setting]) -> str:
    if declared.name in shown:
        value = shown[declared.name].value
    elif declared.default is not MISSING:
        value = declared.default
    elif declared.default_factory is not MISSING:
        value = declared.default_factory()
    else:
        return "[required]"
    if value is None or value == []:
        return ""
    if isinstance(value, list):
        return f"[{shlex.join(map(str, value))}]"
    if isinstance(value, bool):
        return f"[{str(value).lower()}]"
    return f"[{value if isinstance(value, (str, float)) else brief(value)}]"
