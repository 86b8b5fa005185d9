"""Publish a built page as a static Space of the Hugging Face Hub, each push in one commit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants

from tinystories_hf.core.console import command_line
from tinystories_hf.core.errors import UserError
from tinystories_hf.hub.client import FOR_THE_MODEL
from tinystories_hf.hub.repository import HUB_FILES, Repository, reporting_failed_push
from tinystories_hf.web.page import MANIFEST, is_page

# The files of a new static Space, which the Hub creates in one commit.
FRESH = {"README.md", "index.html", "style.css"}


@dataclass(frozen=True)
class SpaceRepository(Repository):
    """A static Space for a page."""

    repo_type: Literal["model", "space", "dataset"] = "space"

    def check_content(self, api: HfApi) -> None:
        """Raise a `UserError` unless a Space is new or holds a page built by this package."""
        names = set(api.list_repo_files(self.repo_id, repo_type="space")) - HUB_FILES
        if self.overwrite or not names:
            return
        if MANIFEST in names and _holds_page(api, self.repo_id):
            return
        # A page made by hand may have the file names of a new Space, but more than one commit.
        commits = api.list_repo_commits(self.repo_id, repo_type="space")
        if not names <= FRESH or len(commits) > 1:
            raise self.other_content_error(names)


def check_space_repository(site: Path, wanted: SpaceRepository) -> SpaceRepository:
    """Check before any upload that a page may be published, and create its Space.

    Raises:
        UserError: the folder is not a built page, or as `Repository.create`.
    """
    _require_page(site)
    return wanted.create()


def publish_space(site: Path, repository: SpaceRepository) -> str:
    """Publish a page as the only content of a Space, in one commit; return the URL.

    Unchanged files are not uploaded again.

    Raises:
        UserError: the folder is not a built page.
        RunError: a file contains the Hub token, the Space has other content, or the upload failed.
    """
    _require_page(site)
    message = f"Publish {site.resolve().name} of tinystories_hf"
    with reporting_failed_push(f"{site} is", repository, _retry_command(site, repository)):
        repository.commit(page_files(site), message, FOR_THE_MODEL)
    return f"{constants.ENDPOINT}/spaces/{repository.repo_id}"


def describe_space(site: Path, repository: SpaceRepository) -> str:
    """Return the files that would be uploaded, with sizes in bytes.

    Raises:
        UserError: the folder is not a built page.
    """
    _require_page(site)
    sizes = {name: path.stat().st_size for name, path in page_files(site).items()}
    lines = [f"{size:>12,}  {name}" for name, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()):>12,}  bytes for {repository}"])


def page_files(site: Path) -> dict[str, Path]:
    """Return the published files of a page by their names in the Space: all but hidden files."""
    names = {path.relative_to(site): path for path in sorted(site.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def _retry_command(site: Path, repository: SpaceRepository) -> str:
    """Return the command line that retries publishing a page."""
    words = ["--site", str(site), "--space", repository.repo_id]
    words += ["--private"] if repository.private else []
    words += ["--overwrite"] if repository.overwrite else []
    return command_line("push", *words)


def _require_page(site: Path) -> None:
    if not is_page(site):
        raise UserError(
            f"site: {site} is not a built page; build it with"
            f" {command_line('page', '--model', 'runs/xs', '--out', str(site))}"
        )


def _holds_page(api: HfApi, repo_id: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        api.hf_hub_download(repo_id, MANIFEST, repo_type="space", local_dir=folder)
        return is_page(Path(folder))
