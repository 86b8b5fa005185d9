"""The command line of scripts/generate.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinystories_hf.config.arguments import GenerationArguments
from tinystories_hf.config.parsing import StrictParser, build_dataclass
from tinystories_hf.core.errors import UserError


class GenerationRequest(NamedTuple):
    """What scripts/generate.py is asked for."""

    model: str
    revision: str | None
    prompt: list[str]
    settings: GenerationArguments


def parse_generation_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> GenerationRequest:
    """Read the command line of scripts/generate.py.

    Raises:
        UserError: an unknown flag, a missing model or prompt, or a value out of range.
    """
    parser = StrictParser(description)
    parser.add_argument("--model", metavar="NAME", help="run directory, folder, or name on the Hub")
    parser.add_argument("--revision", metavar="REV", help="commit, tag or branch on the Hub")
    parser.add_argument("--prompt", metavar="TEXT", nargs="+", help="beginnings to be told on")
    parser.add_dataclass(
        "how to tell (in brackets: the value without the flag)", GenerationArguments
    )
    flags = parser.parse_layer(argv)
    named = {key: flags.pop(key).value for key in ("model", "revision", "prompt") if key in flags}
    if "model" not in named or "prompt" not in named:
        raise UserError(
            "give --model and --prompt, such as --model runs/xs --prompt 'Once upon a time'"
        )
    settings = build_dataclass(GenerationArguments, flags)
    return GenerationRequest(named["model"], named.get("revision"), named["prompt"], settings)
