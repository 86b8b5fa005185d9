"""The command lines of the scripts that take a finished run: to tell, publish, export, show it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tinystories_hf.arguments import GenerationArguments, HubArguments
from tinystories_hf.errors import UserError
from tinystories_hf.parsing import StrictParser, build


class PushRequest(NamedTuple):
    """What scripts/push_to_hub.py is asked for."""

    model: Path
    revision: str
    dry_run: bool
    hub: HubArguments
    stated: dict[str, Any]  # of the licence and languages of the card, those that are given


class SpaceRequest(NamedTuple):
    """What scripts/push_to_hub.py is asked for where a page is to become a Space."""

    site: Path
    space: str
    private: bool
    overwrite: bool
    dry_run: bool


def parse_push_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> PushRequest | SpaceRequest:
    """Read the command line of scripts/push_to_hub.py.

    Raises:
        UserError: an unknown flag, neither a run with its repository nor a page with its Space, or
            both.
    """
    parser = StrictParser(description)
    parser.add_argument("--model", metavar="DIR", help="run directory")
    parser.add_argument("--repo", metavar="NAME", help="repository, such as me/tinystories-xs")
    parser.add_argument("--revision", metavar="REV", help="branch to publish to [main]")
    parser.add_argument("--license", metavar="NAME", help="for the card, such as mit")
    parser.add_argument("--language", metavar="CODE", nargs="+", help="for the card, such as en")
    parser.add_argument("--site", metavar="DIR", help="page of scripts/build_page.py, not a run")
    parser.add_argument("--space", metavar="NAME", help="its Space, such as me/tinystories-demo")
    parser.add_argument("--private", action="store_true", help="if the repository is created")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what else the repository holds"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="show files and card, and change nothing"
    )
    flags = {name: setting.value for name, setting in parser.parse_layer(argv).items()}
    if {"site", "space"} & set(flags):
        return _space_request(flags)
    if "model" not in flags or "repo" not in flags:
        raise UserError("give --model and --repo, such as --model runs/xs --repo me/tinystories-xs")
    stated: dict[str, Any] = {
        name: flags[name] for name in ("license", "language") if name in flags
    }
    hub = HubArguments(
        push_to_hub=True,
        hub_model_id=flags["repo"],
        hub_private_repo="private" in flags,
        hub_overwrite="overwrite" in flags,
        **stated,
    )
    revision = flags.get("revision", "main")
    return PushRequest(Path(flags["model"]), revision, "dry_run" in flags, hub, stated)


def _space_request(flags: dict[str, Any]) -> SpaceRequest:
    if not {"site", "space"} <= set(flags):
        raise UserError(
            "give --site and --space together, such as --site site --space me/tinystories-demo"
        )
    names = ("model", "repo", "revision", "license", "language")
    of_a_run = [f"--{name}" for name in names if name in flags]
    if of_a_run:
        raise UserError(
            f"{', '.join(of_a_run)}: is for a run, --site and --space for a page; push one after"
            " the other"
        )
    more = ("private" in flags, "overwrite" in flags, "dry_run" in flags)
    return SpaceRequest(Path(flags["site"]), flags["space"], *more)


def parse_export_arguments(argv: Sequence[str] | None = None, *, description: str = "") -> Path:
    """Read the command line of scripts/export_onnx.py: the folder of the model.

    Raises:
        UserError: an unknown flag, or no model.
    """
    parser = StrictParser(description)
    parser.add_argument("--model", metavar="DIR", help="run directory, or any model folder")
    flags = parser.parse_layer(argv)
    if "model" not in flags:
        raise UserError("give --model, such as --model runs/xs")
    return Path(flags["model"].value)


class PageRequest(NamedTuple):
    """What scripts/build_page.py is asked for; `models` are folders by the names shown."""

    models: dict[str, Path]
    out: Path
    dtype: Literal["q8", "fp32"]
    serve: bool
    port: int


def parse_page_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> PageRequest:
    """Read the command line of scripts/build_page.py.

    Raises:
        UserError: an unknown flag, no model or folder, or a name that is not one or stands twice.
    """
    parser = StrictParser(description)
    parser.add_argument("--model", metavar="DIR", help="exported run directory, by its own name")
    parser.add_argument(
        "--models", metavar="NAME=DIR", nargs="+", help="more of them, side by side"
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the page")
    parser.add_argument("--dtype", metavar="KIND", help="q8 or fp32 weights [q8]")
    parser.add_argument("--serve", action="store_true", help="show it on 127.0.0.1")
    parser.add_argument("--port", metavar="N", help="where to show it; 0 is any free one [8000]")
    flags = {name: setting.value for name, setting in parser.parse_layer(argv).items()}
    if "out" not in flags or not {"model", "models"} & set(flags):
        raise UserError("give --model and --out, such as --model runs/xs --out site")
    named = [f"{Path(flags['model']).resolve().name}={flags['model']}"] if "model" in flags else []
    models: dict[str, Path] = {}
    for text in [*named, *flags.get("models", [])]:
        name, equals, folder = text.partition("=")
        if not equals or not folder or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"models: {text!r} is not NAME=DIR, such as small=runs/small")
        if name in models:
            raise UserError(f"models: the name {name} stands twice; give one of them another")
        models[name] = Path(folder)
    dtype, port = flags.get("dtype", "q8"), flags.get("port", "8000")
    if dtype not in ("q8", "fp32"):
        raise UserError(f"dtype: {dtype!r} is neither q8 nor fp32")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise UserError(f"port: {port!r} is no port; give a number up to 65535")
    return PageRequest(models, Path(flags["out"]), dtype, "serve" in flags, int(port))


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
