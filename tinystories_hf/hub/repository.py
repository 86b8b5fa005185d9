"""A repository on the Hub: the rights to write to it, its content, and commits to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors
from huggingface_hub.utils import validate_repo_id

from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.progress import without_progress_bars
from tinystories_hf.hub.client import Patience, ask, hub_error, plain_uploads_where_there_is_no_xet

MAIN_BRANCH = "main"
# Created by the Hub in each repository.
HUB_FILES = {".gitattributes"}
_R = TypeVar("_R", bound="Repository")


@dataclass(frozen=True)
class Repository(ABC):
    """A revision of a repository, and the options of publishing to it.

    Subclasses define which content they may replace.
    """

    repo_id: str
    revision: str = MAIN_BRANCH
    private: bool = False
    overwrite: bool = False
    repo_type: Literal["model", "space", "dataset"] = "model"

    def __str__(self) -> str:
        return self.repo_id if self.revision == MAIN_BRANCH else f"{self.repo_id} ({self.revision})"

    @property
    def setting(self) -> str:
        """Return the name of the setting that named it."""
        return {"model": "hub_model_id", "space": "space", "dataset": "repo"}[self.repo_type]

    @abstractmethod
    def check_content(self, api: HfApi) -> None:
        """Check that publishing would not replace other content.

        Raises:
            UserError: it would.
        """

    def to_delete(self, others: set[str]) -> set[str]:
        """Return which of the files that are not published are deleted; by default all."""
        return others

    def create(self: _R) -> _R:
        """Create the repository if needed; return it with its full name.

        Raises:
            UserError: an invalid name, no token, a token without write access, a repository with
                other content, or the Hub cannot be reached.
        """
        name = self.repo_id
        try:
            validate_repo_id(name)
            account = ask(lambda api: api.whoami())
            found = replace(self, repo_id=name if "/" in name else f"{account['name']}/{name}")
            found._check_rights(account)
            ask(found._create)
            ask(lambda api: api.auth_check(found.repo_id, repo_type=found.repo_type, write=True))
            ask(found.check_content)
        except errors.HFValidationError as error:
            raise UserError(f"{self.setting}: {name!r} is not a valid name: {error}") from error
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"push_to_hub: {hub_error(error, name)}") from error
        return found

    def commit(self, files: dict[str, Path], message: str, patience: Patience) -> None:
        """Commit files to the revision, in one commit, or none if it has them already.

        Other files are deleted as `to_delete` returns.

        Raises:
            UserError: a file contains the Hub token, or as `check_content`.
        """
        _refuse_secrets(files)
        repo_id, revision, repo_type = self.repo_id, self.revision, self.repo_type

        def attempt(api: HfApi) -> None:
            self._create(api)
            self.check_content(api)
            if revision != MAIN_BRANCH:
                # From the empty first commit: a branch of main would hold another model briefly.
                first = api.list_repo_commits(repo_id, repo_type=repo_type)[-1].commit_id
                api.create_branch(
                    repo_id, branch=revision, revision=first, repo_type=repo_type, exist_ok=True
                )
            present = set(api.list_repo_files(repo_id, revision=revision, repo_type=repo_type))
            gone = self.to_delete(present - set(files) - HUB_FILES)
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

    def other_content_error(self, names: set[str]) -> UserError:
        """Return the error for a repository with other content."""
        flag = "--overwrite"
        if self.repo_type == "model":
            flag = "--hub_overwrite (push_to_hub.py: --overwrite)"
        shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        return UserError(
            f"{self.setting}: {self} already has other content ({shown}); choose another name, or"
            f" replace it with {flag}"
        )

    def _check_rights(self, account: dict[str, Any]) -> None:
        """Raise a `UserError` if the token's scopes do not include write access."""
        repo_id, setting = self.repo_id, self.setting
        owner = repo_id.partition("/")[0]
        token = account.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise UserError(
                "push_to_hub: the Hub token is read-only; create one with write access at"
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
                f"{setting}: {account['name']} is not a member of {owner}; use"
                f" {account['name']}/{repo_id.partition('/')[2]}"
            )
        if organizations.get(owner, {}).get("roleInOrg") == "read":
            raise UserError(
                f"{setting}: {account['name']} has only read access to {owner}; ask its admins for"
                " write access"
            )

    def _create(self, api: HfApi) -> None:
        api.create_repo(
            self.repo_id,
            # None is the default of the Hub: an organization may make its repositories private.
            private=True if self.private else None,
            repo_type=self.repo_type,
            space_sdk="static" if self.repo_type == "space" else None,
            exist_ok=True,
        )


@contextmanager
def reporting_failed_push(what: str, repository: Repository, command: str) -> Iterator[None]:
    """Turn any error of a push into a `RunError` that names the command that retries it.

    Raises:
        RunError: the push failed.
    """
    try:
        yield
    except Exception as error:
        reason = error if isinstance(error, UserError) else hub_error(error, repository.repo_id)
        raise RunError(
            f"{what} not published to {repository}: {reason}; to publish it: {command}"
        ) from error


def _refuse_secrets(files: dict[str, Path]) -> None:
    token = huggingface_hub.get_token()
    for name, path in files.items():
        if token and _contains(path, token.encode()):
            raise UserError(f"{path} contains your Hub token; remove it from {name} first")


def _contains(path: Path, secret: bytes) -> bool:
    """Return whether a file contains some bytes, in bounded memory: rows take gigabytes."""
    before = b""
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            if secret in before + block:
                return True
            before = block[-len(secret) :]
    return False
