"""The command line of scripts/push_to_hub.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinystories_hf.config.arguments import HubArguments
from tinystories_hf.config.flags import StrictParser
from tinystories_hf.core.errors import UserError


class PushRequest(NamedTuple):
    """The request of scripts/push_to_hub.py to publish a run."""

    model: Path
    revision: str
    dry_run: bool
    hub: HubArguments
    stated: dict[str, Any]  # the licence and languages that were given, for the card


class SpaceRequest(NamedTuple):
    """The request of scripts/push_to_hub.py to publish a page as a Space."""

    site: Path
    space: str
    private: bool
    overwrite: bool
    dry_run: bool


class RowsRequest(NamedTuple):
    """The request of scripts/push_to_hub.py to publish prepared rows as a dataset."""

    rows: Path
    repo: str
    private: bool
    overwrite: bool
    dry_run: bool


def parse_push_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> PushRequest | SpaceRequest | RowsRequest:
    """Read the command line of scripts/push_to_hub.py.

    Raises:
        UserError: an unknown flag, or not exactly one of a run, prepared rows and a page, with its
            repository.
    """
    parser = StrictParser(description)
    parser.add_argument("--model", metavar="DIR", help="run directory")
    parser.add_argument("--repo", metavar="NAME", help="repository, such as me/tinystories-xs")
    parser.add_argument("--revision", metavar="REV", help="branch to publish to [main]")
    parser.add_argument("--license", metavar="NAME", help="licence on the card, such as mit")
    parser.add_argument(
        "--language", metavar="CODE", nargs="+", help="languages on the card, such as en"
    )
    parser.add_argument(
        "--rows",
        metavar="DIR",
        help="prepared folder, as scripts/prepare_data.py prints it, to publish as a dataset",
    )
    parser.add_argument(
        "--site",
        metavar="DIR",
        help="page built by scripts/build_page.py, to publish instead of a run",
    )
    parser.add_argument(
        "--space", metavar="NAME", help="Space for the page, such as me/tinystories-demo"
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace any other content of the repository"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the files and the card without publishing"
    )
    flags = {name: setting.value for name, setting in parser.parse_layer(argv).items()}
    if {"site", "space"} & set(flags):
        return _space_request(flags)
    if "rows" in flags:
        return _rows_request(flags)
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


def _rows_request(flags: dict[str, Any]) -> RowsRequest:
    if "repo" not in flags:
        raise UserError("give --rows and --repo together, such as --repo me/tinystories-rows")
    of_a_run = [f"--{n}" for n in ("model", "revision", "license", "language") if n in flags]
    if of_a_run:
        raise UserError(f"{', '.join(of_a_run)}: applies to a run, --rows to a dataset")
    more = ("private" in flags, "overwrite" in flags, "dry_run" in flags)
    return RowsRequest(Path(flags["rows"]), flags["repo"], *more)


def _space_request(flags: dict[str, Any]) -> SpaceRequest:
    if not {"site", "space"} <= set(flags):
        raise UserError(
            "give --site and --space together, such as --site site --space me/tinystories-demo"
        )
    names = ("model", "rows", "repo", "revision", "license", "language")
    of_a_run = [f"--{name}" for name in names if name in flags]
    if of_a_run:
        raise UserError(
            f"{', '.join(of_a_run)}: applies to a run, --site and --space to a page; push one after"
            " the other"
        )
    more = ("private" in flags, "overwrite" in flags, "dry_run" in flags)
    return SpaceRequest(Path(flags["site"]), flags["space"], *more)
