"""Reading from the Hugging Face Hub: one place that turns its failures into one sentence.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as everywhere in Hugging Face.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import constants, errors

from tinystories_hf.errors import UserError

Kind = Literal["dataset", "tokenizer", "model"]
FLAGS: dict[Kind, str] = {
    "dataset": "--dataset FILE_OR_FOLDER",
    "tokenizer": "--tokenizer FOLDER",
    "model": "--model FOLDER",
}
TIMEOUT_SECONDS = 10


def resolve_commit(repo_id: str, kind: Kind, revision: str | None) -> str:
    """Return the commit that a revision stands for; one quick request, without retries.

    Raises:
        UserError: no such repository or revision, or the Hub cannot be reached.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            path = huggingface_hub.snapshot_download(
                repo_id, repo_type=_repo_type(kind), revision=revision, local_files_only=True
            )
            return Path(path).name
        info = huggingface_hub.HfApi().repo_info(
            repo_id, repo_type=_repo_type(kind), revision=revision, timeout=TIMEOUT_SECONDS
        )
    except Exception as error:
        raise explain(error, repo_id, kind, revision) from error
    return str(info.sha)


def download_files(repo_id: str, kind: Kind, revision: str | None, patterns: list[str]) -> Path:
    """Download the files that match and return the snapshot's folder, named by its commit.

    Raises:
        UserError: no such repository or revision, or the Hub cannot be reached and the files are
            not in the cache either.
    """
    try:
        snapshot = huggingface_hub.snapshot_download(
            repo_id, repo_type=_repo_type(kind), revision=revision, allow_patterns=patterns
        )
    except Exception as error:
        raise explain(error, repo_id, kind, revision) from error
    return Path(snapshot)


def explain(error: Exception, repo_id: str, kind: Kind, revision: str | None) -> UserError:
    """Say in one sentence what went wrong on the way to the Hub, and what to do."""
    what = f"the {kind} {repo_id}"
    if isinstance(error, UserError):
        return error
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{what} is neither a local path nor a name on the Hub: {error}")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{what} has no revision {revision!r} on {constants.ENDPOINT}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{what} is no local path and not on {constants.ENDPOINT}; check the name,"
            " or log in with `hf auth login` if it is private"
        )
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return UserError(
        f"could not reach {constants.ENDPOINT} for {what} ({reason}); give local files with"
        f" {FLAGS[kind]},"
        " or set HF_HUB_OFFLINE=1 to use what is already in the Hugging Face cache"
    )


def _repo_type(kind: Kind) -> str:
    return "dataset" if kind == "dataset" else "model"
