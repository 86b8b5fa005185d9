"""Publishing a built page as a static Space of the Hugging Face Hub, each push one commit."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi, constants

from tinystories_hf.core.console import script_command
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.hub.client import FOR_THE_MODEL, hub_error
from tinystories_hf.hub.repository import (
    HUB_FILES,
    Repository,
    commit_files,
    open_repository,
    other_content,
)
from tinystories_hf.web.page import MANIFEST, is_page

# What the Hub puts into a static Space when it is created, in one commit.
FRESH = {"README.md", "index.html", "style.css"}


def check_space_repository(site: Path, wanted: Repository) -> Repository:
    """Find out before any upload whether a page may be published, and create its Space.

    Raises:
        UserError: the folder is no page, or as `destination.open_destination`.
    """
    _require_page(site)
    return open_repository(wanted, _check_content)


def publish_space(site: Path, destination: Repository) -> str:
    """Make a Space hold a page and nothing else, by one commit; return the URL.

    Files whose bytes are there already are not uploaded again.

    Raises:
        UserError: the folder is no page.
        RunError: a file holds the Hub token, the Space holds something else, or the upload failed
            for good.
    """
    _require_page(site)
    message = f"Publish {site.resolve().name} of tinystories_hf"
    try:
        commit_files(page_files(site), destination, _check_content, message, FOR_THE_MODEL)
    except Exception as error:
        reason = error if isinstance(error, UserError) else hub_error(error, destination.repo_id)
        raise RunError(
            f"{site} is not published to {destination}: {reason}; to publish it:"
            f" {_retry_command(site, destination)}"
        ) from error
    return f"{constants.ENDPOINT}/spaces/{destination.repo_id}"


def describe_space(site: Path, destination: Repository) -> str:
    """Return what would be uploaded, with sizes.

    Raises:
        UserError: the folder is no page.
    """
    _require_page(site)
    sizes = {name: path.stat().st_size for name, path in page_files(site).items()}
    lines = [f"{size:>12,}  {name}" for name, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()):>12,}  bytes for {destination}"])


def page_files(site: Path) -> dict[str, Path]:
    """Return what of a page is published, by its name in the Space: all but what is hidden."""
    names = {path.relative_to(site): path for path in sorted(site.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def _retry_command(site: Path, destination: Repository) -> str:
    """Return the command line that publishes a page again."""
    words = ["--site", str(site), "--space", destination.repo_id]
    words += ["--private"] if destination.private else []
    words += ["--overwrite"] if destination.overwrite else []
    return script_command("push_to_hub.py", *words)


def _require_page(site: Path) -> None:
    if not is_page(site):
        raise UserError(
            f"site: {site} is no page; build it with"
            f" {script_command('build_page.py', '--model', 'runs/xs', '--out', str(site))}"
        )


def _check_content(api: HfApi, destination: Repository) -> None:
    """Raise a `UserError` where a Space holds neither a page of ours nor what it came with."""
    repo_id = destination.repo_id
    names = set(api.list_repo_files(repo_id, repo_type="space")) - HUB_FILES
    if destination.overwrite or not names or (MANIFEST in names and _holds_page(api, repo_id)):
        return
    # A page made by hand has the names of a fresh one, but more than its one commit.
    if not names <= FRESH or len(api.list_repo_commits(repo_id, repo_type="space")) > 1:
        raise other_content(destination, names)


def _holds_page(api: HfApi, repo_id: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        api.hf_hub_download(repo_id, MANIFEST, repo_type="space", local_dir=folder)
        return is_page(Path(folder))
