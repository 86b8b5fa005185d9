"""The JavaScript libraries of the page: files of npm packages, locked by sha256 and cached.

`libraries.json` holds the versions, files and digests. To upgrade, change it there: each version of
transformers.js needs the ONNX Runtime version of its package.json.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import appearing, file_sha256

_LOCK = Path(__file__).with_name("libraries.json")
CDN = "https://cdn.jsdelivr.net/npm"
# The import names, and the locked files they resolve to.
IMPORTS = {
    "@huggingface/transformers": "transformers.js",
    "onnxruntime-web/webgpu": "onnxruntime.js",
    "onnxruntime-common": "onnxruntime.js",
}
WASM = "onnxruntime.wasm"
NPM_SECONDS = 300


@dataclass(frozen=True)
class LibraryFile:
    """A file of a package: its path there, its name here, its sha256."""

    path: str
    to: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Library:
    """A locked npm package and the files that the page uses."""

    name: str
    version: str
    licence: str
    copyright: str
    url: str
    files: tuple[LibraryFile, ...]

    @property
    def package(self) -> str:
        """Return the package name with its version, as npm and the CDN write it."""
        return f"{self.name}@{self.version}"


@functools.cache
def locked_libraries() -> tuple[Library, ...]:
    """Return the libraries of `libraries.json`."""
    entries = json.loads(_LOCK.read_text(encoding="utf-8"))
    return tuple(
        Library(**{**entry, "files": tuple(LibraryFile(**file) for file in entry["files"])})
        for entry in entries
    )


def fetch_library(library: Library) -> Path | None:
    """Return a folder with the files of a library, from the cache or npm, or None without npm.

    The cache is $HF_HOME/tinystories_hf/page.

    Raises:
        UserError: npm fails to download the package, or its files differ from the lock.
    """
    name = f"{library.name.rpartition('/')[2]}-{library.version}"
    cached = Path(constants.HF_HOME) / "tinystories_hf" / "page" / name
    if not cached.is_dir():
        npm = shutil.which("npm")
        if npm is None:
            return None
        with appearing(cached, "HF_HOME", f"fetching {library.package}") as work:
            if work is not None:
                _unpack(npm, library, work)
    for file in library.files:
        if file_sha256(cached / file.to) != file.sha256:
            raise UserError(
                f"{cached / file.to} differs from {_LOCK.name}; remove {cached} and build again"
            )
    return cached


def _unpack(npm: str, library: Library, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        command = [npm, "pack", library.package, "--ignore-scripts", "--loglevel=error"]
        try:
            subprocess.run(
                [*command, "--pack-destination", work],
                cwd=work,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=True,
                timeout=NPM_SECONDS,
            )
        except subprocess.SubprocessError as error:
            output = getattr(error, "stderr", None) or str(error)
            if isinstance(output, bytes):  # of a timeout, whatever the encoding
                output = output.decode("utf-8", "replace")
            said = output.strip().splitlines() or [str(error)]
            reason = next((line for line in said if line.startswith("npm error")), said[0])
            raise UserError(
                f"npm could not download {library.package}: {reason}; build with network"
                " access (without npm on the PATH the page loads its libraries from a CDN)"
            ) from None
        (archive,) = Path(work).glob("*.tgz")
        with tarfile.open(archive) as package:
            for file in library.files:
                content = _content(package, f"package/{file.path}")
                if hashlib.sha256(content).hexdigest() != file.sha256:
                    raise UserError(f"{file.path} of {library.package} differs from {_LOCK.name}")
                (folder / file.to).write_bytes(content)


def _content(package: tarfile.TarFile, name: str) -> bytes:
    """Return a file of an archive, or empty bytes if it is missing."""
    try:
        found = package.extractfile(name)
    except KeyError:
        found = None
    return found.read() if found else b""


def import_map(cdn: bool) -> str:
    """Return the page's import map: local files, or those of the CDN with their digests."""
    files = {file.to: (library, file) for library in locked_libraries() for file in library.files}
    if not cdn:
        return json.dumps({"imports": {name: f"./lib/{to}" for name, to in IMPORTS.items()}})
    urls = {name: cdn_url(*files[to]) for name, to in IMPORTS.items()}
    digests = {cdn_url(*files[to]): _integrity(files[to][1]) for to in set(IMPORTS.values())}
    return json.dumps({"imports": urls, "integrity": digests})


def cdn_url(library: Library, file: LibraryFile) -> str:
    """Return the CDN URL of a file of a library."""
    return f"{CDN}/{library.package}/{file.path}"


def _integrity(file: LibraryFile) -> str:
    return f"sha256-{base64.b64encode(bytes.fromhex(file.sha256)).decode()}"
