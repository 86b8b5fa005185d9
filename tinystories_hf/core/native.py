"""Compile this package's C++ files once for the machine, and load them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parents[1]
_FLAGS: tuple[str, ...] = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


class NotCompiledError(Exception):
    """A C++ file cannot be compiled or loaded here; the message gives the reason and the fix."""


@functools.cache
def load_library(name: str) -> ctypes.CDLL | None:
    """Load a C++ file of this package; where that fails, log the reason and return None."""
    try:
        return compile_library(name)
    except NotCompiledError as error:
        logger.warning(
            "%s; the slower PyTorch and Python implementations are used and give the same results.",
            error,
        )
        return None


def compile_library(name: str) -> ctypes.CDLL:
    """Load a C++ file of this package, compiling it first if needed (4 s).

    `name` is relative to the package, such as `model/kernels.cpp`.

    The library is loaded from the user's cache. It is loaded from the folder of temporary files
    where the cache cannot be written, or is on a file system mounted noexec.

    Raises:
        NotCompiledError: there is no compiler, it fails, or neither folder can be used.
    """
    source = _SOURCES / name
    try:
        command = [*_compiler(), *_FLAGS]
        # Keyed by the processor too: a home directory may be shared between machines.
        identity = "\n".join([*command, _run([*_compiler(), "--version"]), _processor()])
        digest = hashlib.sha256(source.read_bytes() + identity.encode()).hexdigest()[:16]
        kept = _kept(f"{source.stem}-{digest}")
        if kept and (library := _loaded(kept)):
            return library
        with tempfile.TemporaryDirectory() as work:
            fresh = Path(work) / f"{source.stem}-{digest}.so"
            if kept:
                shutil.copyfile(kept, fresh)
            else:
                _run([*command, str(source), "-o", str(fresh)])
                kept = _keep(fresh)
                if kept and (library := _loaded(kept)):
                    return library
            return _load_temporary(fresh)
    except subprocess.CalledProcessError as error:
        raise NotCompiledError(
            f"{name} cannot be compiled ({_complaint(error)}). A C++ compiler with OpenMP is"
            " needed (g++ or clang++); set CXX to one"
        ) from None
    except OSError as error:
        raise NotCompiledError(f"{name} cannot be compiled ({error})") from None


def _kept(stem: str) -> Path | None:
    """Return the library that is in the cache.

    Its name ends in the sha256 of its content: loading a truncated library crashes the process.
    """
    folder = _cache()
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{stem}-*.so") if folder else ():
            if path.stem == f"{stem}-{_sha256(path)}":
                return path
    return None


def _keep(fresh: Path) -> Path | None:
    """Copy a library into the cache; where that fails it is compiled again next time."""
    folder = _cache()
    if folder is None:
        return None
    kept = folder / f"{fresh.stem}-{_sha256(fresh)}.so"
    aside = folder / f"{uuid.uuid4().hex}.aside"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fresh, aside)
        aside.replace(kept)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        return None
    return kept


def _cache() -> Path | None:
    """Return the folder of compiled libraries, or None for a user without a home directory."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return caches / "tinystories_hf"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _loaded(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _load_temporary(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotCompiledError(
            f"{path.name} is compiled but cannot be loaded ({error}). If the file"
            " system is mounted noexec, set XDG_CACHE_HOME or TMPDIR to a folder on another"
        ) from None


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX") or "")
    for name in [named[0]] if named else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return [found, *named[1:]]
    missing = f"CXX is {named[0]}, which was not found" if named else "no C++ compiler was found"
    raise OSError(f"{missing}; install g++ or clang++ with OpenMP, or set CXX to one")


def _run(command: list[str]) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8", errors="replace"
    ).stdout


def _complaint(error: subprocess.CalledProcessError) -> str:
    """Return the first error that a compiler reports, else the first line that it prints."""
    lines = str(error.stderr or "").strip().splitlines() or [str(error)]
    return next((line for line in lines if "error" in line), lines[0]).strip()


def _processor() -> str:
    """Return the lines of /proc/cpuinfo that identify the instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    identifying = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(identifying)}))
