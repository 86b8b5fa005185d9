"""What the tests of publishing share: a token, a repository, and what is where."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.loopback_hub import LoopbackHub
from tinystories_hf.core.files import file_sha256
from tinystories_hf.hub.publish import staged_files

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


def write_export(run_dir: Path) -> None:
    """Put files beside a model as an export does, with a record that is true of them."""
    folder = run_dir / "onnx"
    folder.mkdir()
    names = ("model.onnx", "model_quantized.onnx")
    for name in names:
        (folder / name).write_bytes(b"\0graph " + name.encode())
    record = {
        "safetensors_sha256": file_sha256(run_dir / "model.safetensors"),
        "files": {name: {"sha256": file_sha256(folder / name)} for name in names},
    }
    (folder / "export.json").write_text(json.dumps(record))
