"""What the tests of publishing share: a token, a repository, and what is where."""

from __future__ import annotations

from pathlib import Path

from tests.loopback_hub import LoopbackHub
from tinystories_hf.hub import staged_files

TOKEN = "hf_KnownSecretValue0123456789abcdef"
REPO = "me/tiny"


def published(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    files = hub.repositories["models", REPO].at(revision)
    return {name: content for name, content in files.items() if name != ".gitattributes"}


def on_disk(run_dir: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in staged_files(run_dir).items()}


def everything(hub: LoopbackHub) -> list[bytes]:
    """Return all that the server ever stored."""
    commits = [files for found in hub.repositories.values() for files in found.commits.values()]
    return [
        *hub.large_files.values(),
        *(content for files in commits for content in files.values()),
    ]
