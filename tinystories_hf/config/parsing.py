"""Strict parsing of settings from layers (YAML files, the command line) into dataclasses.

A layer maps the names of settings to raw values and their source, so that error messages can name
the file or the flag. Later layers override earlier ones. The settings themselves are declared in
`arguments`.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tinystories_hf.config.flag_hints import suggest_flag
from tinystories_hf.core.errors import UserError

_T = TypeVar("_T")


def option(
    help: str,  # noqa: A002
    default: Any = MISSING,
    *,
    belongs_to: str | None = None,
    rest: str | None = None,
) -> Any:
    """Declare a dataclass field that is a setting.

    Args:
        help: The help text of its flag.
        default: The default; without one, the setting is required.
        belongs_to: The setting that this one qualifies, such as `dataset` for a revision. A layer
            that sets the other one and not this one resets this one to its default, so that a
            revision pinned in YAML never applies to a dataset chosen on the command line. The
            other one can itself belong to a setting, which then resets both.
        rest: The setting that takes all values but the first if several are given.
    """
    metadata = {"help": help, "belongs_to": belongs_to, "rest": rest}
    if isinstance(default, list):
        # A list cannot be hashed; settings are still compared by it.
        return field(default_factory=lambda: list(default), metadata=metadata, hash=False)
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
    for layer in (_first_and_rest(layer, known) for layer in layers):
        for key, setting in layer.items():
            if key not in known:
                raise UserError(f"{setting.where}: unknown setting{suggest_flag(key, known)}")
        for key in known:
            if key not in layer and _is_reset(key, layer, known):
                merged.pop(key, None)
        merged.update(layer)
    return merged


def _first_and_rest(
    layer: Mapping[str, Setting], known: Mapping[str, Field[Any]]
) -> dict[str, Setting]:
    """Return a layer in which settings with several values are divided as `rest` says."""
    found = dict(layer)
    for key, setting in layer.items():
        rest = known[key].metadata.get("rest") if key in known else None
        if rest is not None and isinstance(setting.value, list) and setting.value:
            found[key] = Setting(setting.value[0], setting.where)
            if len(setting.value) > 1:
                found[rest] = Setting(setting.value[1:], setting.where)
    return found


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
    members = members_of(hint)
    if setting.value is None or setting.value in ("null", "none", "None"):
        if type(None) in members:
            return None
        raise UserError(f"{setting.where}: a value is required ({_describe(hint)})")
    for member in members:
        converted = _convert_one(setting.value, member)
        if converted is not None:
            return converted
    raise UserError(f"{setting.where}: expected {_describe(hint)}, got {brief(setting.value)}")


def members_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union type, or the type itself."""
    union = get_origin(hint) in (Union, types.UnionType)
    return get_args(hint) if union else (hint,)


def _convert_one(value: Any, hint: Any) -> Any:
    """Return the value converted to `hint`, or None if it does not fit."""
    if get_origin(hint) is Literal:
        return value if value in get_args(hint) else None
    if hint == list[float]:
        numbers = [_convert_one(x, float) for x in value] if isinstance(value, list) else [None]
        return None if None in numbers else numbers
    if get_origin(hint) is list:
        fits = isinstance(value, list) and all(is_text_value(item) for item in value)
        return list(value) if fits else None
    if hint is dict:
        return _mapping(value)
    if hint is bool:
        if isinstance(value, str):
            return {"true": True, "false": False}.get(value.lower())
        return value if isinstance(value, bool) else None
    if hint is str:
        return value if is_text_value(value) else None
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
    fits = isinstance(value, dict) and all(is_text_value(key) for key in value)
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


def is_text_value(value: Any) -> bool:
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
    for member in members_of(hint):
        if get_origin(member) is Literal:
            parts += [str(choice) for choice in get_args(member)]
        elif get_origin(member) is list:
            what = "numbers" if get_args(member) == (float,) else "text values"
            parts.append(f"a list of {what}")
        elif member is type(None):
            parts.append("null")
        else:
            parts.append(words[member])
    return ", ".join(parts[:-1]) + " or " + parts[-1] if len(parts) > 1 else parts[0]
