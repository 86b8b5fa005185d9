"""Where on the Hub something is published: whether it may be, and the one commit that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors
from huggingface_hub.utils import validate_repo_id

from tinystories_hf.core.errors import UserError
from tinystories_hf.core.progress import without_progress_bars
from tinystories_hf.hub.client import Patience, ask, hub_error, plain_uploads_where_there_is_no_xet

MAIN_BRANCH = "main"
# Written by the Hub itself into each repository.
HUB_FILES = {".gitattributes"}


@dataclass(frozen=True)
class Repository:
    """A revision of a repository, and what may be done to it."""

    repo_id: str
    revision: str = MAIN_BRANCH
    private: bool = False
    overwrite: bool = False
    repo_type: Literal["model", "space"] = "model"

    def __str__(self) -> str:
        return self.repo_id if self.revision == MAIN_BRANCH else f"{self.repo_id} ({self.revision})"

    @property
    def setting(self) -> str:
        """Return what the user set to name it."""
        return {"model": "hub_model_id", "space": "space"}[self.repo_type]


# Raises a `UserError` where publishing would touch what is of somebody or something else.
ContentCheck = Callable[[HfApi, Repository], None]


def open_repository(wanted: Repository, check_content: ContentCheck) -> Repository:
    """Create a repository if it is not there; return it by its full name.

    Raises:
        UserError: an illegal name, no token, a token that may not write there, a repository that
            holds something else, or the Hub cannot be reached.
    """
    name = wanted.repo_id
    try:
        validate_repo_id(name)
        account = ask(lambda api: api.whoami())
        found = replace(wanted, repo_id=name if "/" in name else f"{account['name']}/{name}")
        _check_rights(account, found)
        ask(lambda api: _create(api, found))
        ask(lambda api: api.auth_check(found.repo_id, repo_type=found.repo_type, write=True))
        ask(lambda api: check_content(api, found))
    except errors.HFValidationError as error:
        raise UserError(f"{wanted.setting}: {name!r} is no legal name: {error}") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"push_to_hub: {hub_error(error, name)}") from error
    return found


def other_content(destination: Repository, names: set[str]) -> UserError:
    """Return the refusal of a repository with the files of others."""
    flag = "--overwrite"
    if destination.repo_type == "model":
        flag = "--hub_overwrite (push_to_hub.py: --overwrite)"
    return UserError(
        f"{destination.setting}: {destination} already holds something else"
        f" ({', '.join(sorted(names)[:3])}, ...); choose another name, or replace it with {flag}"
    )


def commit_files(
    files: dict[str, Path],
    destination: Repository,
    check_content: ContentCheck,
    message: str,
    patience: Patience,
    goes: Callable[[set[str]], set[str]] = lambda others: others,
) -> None:
    """Make a revision hold these files by one commit; none where it holds them already.

    `goes` chooses what of the other files is deleted; all of them, if it is not given.

    Raises:
        UserError: a file holds the Hub token, or as `check_content`.
    """
    _refuse_secrets(files)
    repo_id, revision, repo_type = destination.repo_id, destination.revision, destination.repo_type

    def attempt(api: HfApi) -> None:
        _create(api, destination)
        check_content(api, destination)
        if revision != MAIN_BRANCH:
            # From the empty first commit: a branch from main would hold another model for a moment.
            first = api.list_repo_commits(repo_id, repo_type=repo_type)[-1].commit_id
            api.create_branch(
                repo_id, branch=revision, revision=first, repo_type=repo_type, exist_ok=True
            )
        present = set(api.list_repo_files(repo_id, revision=revision, repo_type=repo_type))
        gone = goes(present - set(files) - HUB_FILES)
        operations: list[Any] = [
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in sorted(gone)),
        ]
        with plain_uploads_where_there_is_no_xet(repo_id, repo_type), without_progress_bars():
            api.create_commit(
                repo_id,
                operations,
                commit_message=message,
                revision=revision,
                repo_type=repo_type,
            )

    ask(attempt, patience)


def _refuse_secrets(files: dict[str, Path]) -> None:
    token = huggingface_hub.get_token()
    for name, path in files.items():
        if token and token.encode() in path.read_bytes():
            raise UserError(f"{path} holds your Hub token; remove it from {name} first")


def _check_rights(account: dict[str, Any], destination: Repository) -> None:
    """Raise a `UserError` where whoami already tells that the token may not write there."""
    repo_id, setting = destination.repo_id, destination.setting
    owner = repo_id.partition("/")[0]
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise UserError(
            "push_to_hub: the Hub token may only read; make one that may write at"
            f" {constants.ENDPOINT}/settings/tokens, then `hf auth login`"
        )
    if token.get("role") == "fineGrained":
        scopes = token.get("fineGrained", {}).get("scoped", [])
        named = {
            scope.get("entity", {}).get("name")
            for scope in scopes
            if "repo.write" in scope.get("permissions", [])
        }
        if not named & {owner, repo_id}:
            raise UserError(
                f"push_to_hub: the Hub token has no `repo.write` for {repo_id}; add it at"
                f" {constants.ENDPOINT}/settings/tokens"
            )
    organizations = {entry["name"]: entry for entry in account.get("orgs", [])}
    if owner != account["name"] and owner not in organizations:
        raise UserError(
            f"{setting}: {account['name']} is no member of {owner}; use"
            f" {account['name']}/{repo_id.partition('/')[2]}"
        )
    if organizations.get(owner, {}).get("roleInOrg") == "read":
        raise UserError(f"{setting}: {account['name']} may only read in {owner}")


def _create(api: HfApi, destination: Repository) -> None:
    # None leaves the choice to the Hub: an organization may make its repositories private.
    private = True if destination.private else None
    repo_type = destination.repo_type
    api.create_repo(
        destination.repo_id,
        private=private,
        repo_type=repo_type,
        space_sdk="static" if repo_type == "space" else None,
        exist_ok=True,
    )
