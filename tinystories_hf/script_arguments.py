"""The command lines of the scripts that take a finished run: generate.py and push_to_hub.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinystories_hf.arguments import GenerationArguments, HubArguments
from tinystories_hf.errors import UserError
from tinystories_hf.parsing import StrictParser, build


class PushRequest(NamedTuple):
    """What scripts/push_to_hub.py is asked for."""

    model: Path
    revision: str
    dry_run: bool
    hub: HubArguments


def parse_push_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> PushRequest:
    """Read the command line of scripts/push_to_hub.py.

    Raises:
        UserError: an unknown flag, or no model or repository.
    """
    parser = StrictParser(description)
    parser.add_argument("--model", metavar="DIR", help="run directory")
    parser.add_argument("--repo", metavar="NAME", help="repository, such as me/tinystories-xs")
    parser.add_argument("--revision", metavar="REV", help="branch to publish to [main]")
    parser.add_argument("--private", action="store_true", help="if the repository is created")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what else the repository holds"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="show files and card, and change nothing"
    )
    flags = {name: setting.value for name, setting in parser.parse_layer(argv).items()}
    if "model" not in flags or "repo" not in flags:
        raise UserError("give --model and --repo, such as --model runs/xs --repo me/tinystories-xs")
    hub = HubArguments(
        push_to_hub=True,
        hub_model_id=flags["repo"],
        hub_private_repo="private" in flags,
        hub_overwrite="overwrite" in flags,
    )
    revision = flags.get("revision", "main")
    return PushRequest(Path(flags["model"]), revision, "dry_run" in flags, hub)


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
    settings = build(GenerationArguments, flags)
    return GenerationRequest(named["model"], named.get("revision"), named["prompt"], settings)
