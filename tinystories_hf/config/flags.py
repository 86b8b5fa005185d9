"""The parser of command lines: each setting is a flag, and unknown flags are answered."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field
from typing import Any, NoReturn, get_origin, get_type_hints

from tinystories_hf.config.flag_hints import suggest_flag
from tinystories_hf.config.parsing import (
    Setting,
    brief,
    is_text_value,
    members_of,
    settings_of,
)
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.shipped import as_installed, started_as


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
            words = _flag_words(hints[declared.name])
            if declared.metadata["rest"]:
                words["nargs"] = "+"
            group.add_argument(
                f"--{declared.name}",
                help=f"{declared.metadata['help']} {_default_text(declared, shown or {})}".replace(
                    "%", "%%"
                ),
                **words,
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
                if isinstance(word, str) and not is_text_value(word):
                    encoding = sys.getfilesystemencoding()
                    raise UserError(f"{setting.where}: expected {encoding} text, got {brief(word)}")
        return layer


def _flag_words(hint: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a type."""
    words: dict[str, Any] = {"metavar": _metavar(hint)}
    if any(get_origin(member) is list for member in members_of(hint)):
        words["nargs"] = "+"
    elif bool in members_of(hint):
        words |= {"nargs": "?", "const": "true"}
    return words


def _metavar(hint: Any) -> str:
    kinds = {bool: "BOOL", int: "N", float: "X", str: "TEXT", dict: "JSON"}
    names = [kinds.get(member, "TEXT") for member in members_of(hint) if member is not type(None)]
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
