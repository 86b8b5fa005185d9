"""Reading from the Hugging Face Hub: one place that turns its failures into one sentence.

`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as everywhere in Hugging Face.
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

RepoKind = Literal["dataset", "tokenizer", "model"]
_FLAGS: dict[RepoKind, str] = {
    "dataset": "--dataset FILE_OR_FOLDER",
    "tokenizer": "--tokenizer FOLDER",
    "model": "--model FOLDER",
}
_TIMEOUT_SECONDS = 10
READ_BYTES = 1 << 20


def resolve_commit(repo_id: str, kind: RepoKind, revision: str | None) -> str:
    """Return the commit that a revision stands for; one quick request, without retries.

    Raises:
        UserError: no such repository or revision, or the Hub cannot be reached.
    """
    return _look_up(repo_id, kind, revision)[0]


def list_files(repo_id: str, commit: str) -> list[str]:
    """Return the names of the files of a dataset, by the same request.

    Raises:
        UserError: as `resolve_commit`.
    """
    return _look_up(repo_id, "dataset", commit)[1]


def _look_up(repo_id: str, kind: RepoKind, revision: str | None) -> tuple[str, list[str]]:
    """Return a commit and the names of its files; offline, of those in the cache."""
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
        raise download_error(error, repo_id, kind, revision) from error
    return Path(snapshot)


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset on the Hub, read over the network as if it lay here: `open`, `name`.

    It is asked for in ranges of some megabytes and never lies on the disk.
    """

    repo_id: str
    commit: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.repo_id}"

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:  # noqa: ARG002
        """Open the file for reading bytes, as `Path.open`.

        Raises:
            UserError: there is no such file, or the Hub cannot be reached; the latter also from
                each reading after that.
        """
        return io.BufferedReader(_Ranges(self), READ_BYTES)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what the network says into one sentence."""
        try:
            yield
        except FileNotFoundError:
            raise UserError(
                f"dataset: {self.repo_id} has no file {self.name} at {self.commit}"
            ) from None
        except Exception as error:
            raise download_error(error, self.repo_id, "dataset", self.commit) from error


class _Ranges(io.RawIOBase):
    """The bytes of a `HubFile`; the end is where the Hub said it is, or an error."""

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
                raise OSError(f"the file ended after {self._file.tell():,} of its bytes")
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def download_error(
    error: Exception, repo_id: str, kind: RepoKind, revision: str | None
) -> UserError:
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
    if isinstance(error, OSError) and error.errno in REFUSED:
        return UserError(
            f"HF_HOME: cannot keep {what} in {constants.HF_HUB_CACHE}: {error.strerror}; set it to"
            " a folder that can be written, on a file system that has locks"
        )
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return UserError(
        f"could not reach {constants.ENDPOINT} for {what} ({reason}); give local files with"
        f" {_FLAGS[kind]},"
        " or set HF_HUB_OFFLINE=1 to use what is already in the Hugging Face cache"
    )


def _repo_type(kind: RepoKind) -> str:
    return "dataset" if kind == "dataset" else "model"
