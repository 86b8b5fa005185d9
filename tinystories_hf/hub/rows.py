"""Publish prepared rows as a dataset on the Hub, which `datasets.load_dataset` opens by name."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants

from tinystories_hf.core.console import command_line
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.manifest import ROWS_MANIFEST
from tinystories_hf.data.rows_dataset import is_prepared
from tinystories_hf.hub.client import FOR_THE_MODEL
from tinystories_hf.hub.repository import HUB_FILES, Repository, reporting_failed_push


@dataclass(frozen=True)
class RowsRepository(Repository):
    """A dataset repository for prepared rows."""

    repo_type: Literal["model", "space", "dataset"] = "dataset"

    def check_content(self, api: HfApi) -> None:
        """Raise a `UserError` unless a dataset is new or holds prepared rows."""
        names = set(api.list_repo_files(self.repo_id, repo_type="dataset")) - HUB_FILES
        if self.overwrite or not names - {"README.md"}:
            return
        if ROWS_MANIFEST not in names or not _holds_rows(api, self.repo_id):
            raise self.other_content_error(names)


def _holds_rows(api: HfApi, repo_id: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        api.hf_hub_download(repo_id, ROWS_MANIFEST, repo_type="dataset", local_dir=folder)
        return is_prepared(Path(folder))


def publish_rows(folder: Path, repository: RowsRepository) -> str:
    """Publish a prepared folder as the only content of a dataset, in one commit; return the URL.

    Unchanged files are not uploaded again.

    Raises:
        UserError: the folder was not written by `prepare`, or as `Repository.create`.
        RunError: a file contains the Hub token, the dataset has other content, or the upload
            failed.
    """
    files = rows_files(folder)
    repository = repository.create()
    message = f"Publish rows {folder.resolve().name} of tinystories_hf"
    words = ["--rows", str(folder), "--repo", repository.repo_id]
    words += ["--private"] if repository.private else []
    words += ["--overwrite"] if repository.overwrite else []
    with reporting_failed_push(f"{folder} is", repository, command_line("push", *words)):
        repository.commit(files, message, FOR_THE_MODEL)
    return f"{constants.ENDPOINT}/datasets/{repository.repo_id}"


def describe_rows(folder: Path, repository: RowsRepository) -> str:
    """Return the files that would be uploaded, with sizes in bytes.

    Raises:
        UserError: the folder was not written by `prepare`.
    """
    sizes = {name: path.stat().st_size for name, path in rows_files(folder).items()}
    lines = [f"{size:>12,}  {name}" for name, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()):>12,}  bytes for {repository}"])


def rows_files(folder: Path) -> dict[str, Path]:
    """Return the files of a prepared folder by their names in the repository.

    Raises:
        UserError: the folder was not written by `prepare`.
    """
    if not is_prepared(folder):
        raise UserError(
            f"rows: {folder} is not a prepared folder; {command_line('prepare')} prints where the"
            " rows are"
        )
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in found}
