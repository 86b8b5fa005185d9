"""Download from the Hugging Face Hub, with every failure reported as a one-sentence `UserError`.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as in `huggingface_hub`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import constants, errors

from tinystories_hf.core.errors import REFUSED, UserError

RepoKind = Literal["dataset", "tokenizer", "model", "base model"]
_FLAGS: dict[RepoKind, str] = {
    "dataset": "--dataset FILE_OR_FOLDER",
    "tokenizer": "--tokenizer FOLDER",
    "model": "--model FOLDER",
    "base model": "--model_name_or_path FOLDER",
}
_TIMEOUT_SECONDS = 10
READ_BYTES = 1 << 20


def resolve_commit(repo_id: str, kind: RepoKind, revision: str | None) -> str:
    """Return the commit hash of a revision, by one request without retries.

    Raises:
        UserError: the repository or revision does not exist, or the Hub cannot be reached.
    """
    return _look_up(repo_id, kind, revision)[0]


def list_files(repo_id: str, commit: str) -> list[str]:
    """Return the names of the files of a dataset, by one request without retries.

    Raises:
        UserError: as `resolve_commit`.
    """
    return _look_up(repo_id, "dataset", commit)[1]


def _look_up(repo_id: str, kind: RepoKind, revision: str | None) -> tuple[str, list[str]]:
    """Return a commit and the names of its files; offline, only of the cached files."""
    try:
        if constants.HF_HUB_OFFLINE:
            path = huggingface_hub.snapshot_download(
                repo_id, repo_type=_repo_type(kind), revision=revision, local_files_only=True
            )
            files = [file for file in Path(path).rglob("*") if file.is_file()]
            return Path(path).name, [file.relative_to(path).as_posix() for file in files]
        info = huggingface_hub.HfApi().repo_info(
            repo_id, repo_type=_repo_type(kind), revision=revision, timeout=_TIMEOUT_SECONDS
        )
    except Exception as error:
        raise download_error(error, repo_id, kind, revision) from error
    return str(info.sha), [file.rfilename for file in getattr(info, "siblings", None) or []]


def download_files(repo_id: str, kind: RepoKind, revision: str | None, patterns: list[str]) -> Path:
    """Download the files that match and return the snapshot's folder, which is named by its commit.

    Raises:
        UserError: the repository or revision does not exist, or the Hub cannot be reached and the
            files are not in the cache.
    """
    try:
        snapshot = huggingface_hub.snapshot_download(
            repo_id, repo_type=_repo_type(kind), revision=revision, allow_patterns=patterns
        )
    except Exception as error:
        raise download_error(error, repo_id, kind, revision) from error
    return Path(snapshot)


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset on the Hub that is read over the network through `Path`'s `open`, `name`.

    It is requested in byte ranges of a few megabytes and is never stored on disk.
    """

    repo_id: str
    commit: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.repo_id}"

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:  # noqa: ARG002
        """Open the file for reading bytes, like `Path.open`.

        Raises:
            UserError: the file does not exist, or the Hub cannot be reached. Later reads raise
                the same error if the Hub cannot be reached.
        """
        return io.BufferedReader(_Ranges(self), READ_BYTES)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Convert network errors into a `UserError`."""
        try:
            yield
        except FileNotFoundError:
            raise UserError(
                f"dataset: {self.repo_id} has no file {self.name} at {self.commit}"
            ) from None
        except Exception as error:
            raise download_error(error, self.repo_id, "dataset", self.commit) from error


class _Ranges(io.RawIOBase):
    """The bytes of a `HubFile`; a file shorter than the Hub reports is an error."""

    def __init__(self, source: HubFile) -> None:
        self._source = source
        path = f"datasets/{source.repo_id}@{source.commit}/{source.name}"
        with source.explained():
            self._file = huggingface_hub.HfFileSystem().open(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with self._source.explained():
            content = self._file.read(len(buffer))
            if not content and self._file.tell() < self._file.size:
                raise OSError(
                    f"the file ended after {self._file.tell():,} of {self._file.size:,} bytes"
                )
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def download_error(
    error: Exception, repo_id: str, kind: RepoKind, revision: str | None
) -> UserError:
    """Return the `UserError` that describes a failed request to the Hub and how to fix it."""
    what = f"the {kind} {repo_id}"
    if isinstance(error, UserError):
        return error
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{what} is neither a local path nor a repository on the Hub: {error}")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{what} has no revision {revision!r} on {constants.ENDPOINT}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{what} is neither a local path nor a repository on {constants.ENDPOINT}; check the"
            " name, or log in with `hf auth login` if it is private"
        )
    if isinstance(error, OSError) and error.errno in REFUSED:
        return UserError(
            f"HF_HOME: cannot store {what} in {constants.HF_HUB_CACHE}: {error.strerror}; set"
            " HF_HOME to a writable folder on a file system that supports locks"
        )
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return UserError(
        f"could not reach {constants.ENDPOINT} for {what} ({reason}); use local files with"
        f" {_FLAGS[kind]}, or set HF_HUB_OFFLINE=1 to use the Hugging Face cache"
    )


def _repo_type(kind: RepoKind) -> str:
    return "dataset" if kind == "dataset" else "model"
