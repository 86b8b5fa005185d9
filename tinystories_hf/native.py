"""C++ of ours, compiled once for the machine and loaded: what Python and PyTorch are too slow for.

Everything that is done so can be done without it, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def load(name: str) -> ctypes.CDLL | None:
    """Load a C++ file of this package, built where this machine has not yet (4 s).

    Without a compiler, return None and say what that costs.
    """
    source = Path(__file__).with_name(name)
    try:
        command = [_compiler(), *FLAGS]
        # For this very processor: a home directory may be shared between machines.
        identity = "\n".join([*command, _run([command[0], "--version"]), _processor()])
        digest = hashlib.sha256(source.read_bytes() + identity.encode()).hexdigest()[:16]
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        cached = caches / "tinystories_hf" / f"{source.stem}-{digest}.so"
        return ctypes.CDLL(str(cached)) if cached.exists() else _build(command, source, cached)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning(
            "%s cannot be compiled (%s); PyTorch's and Python's own ways give the same numbers,"
            " several times slower. Install a C++ compiler (g++ or clang++ with OpenMP), or name"
            " one in CXX.",
            name,
            said.strip().splitlines()[0],
        )
        return None


def _build(command: list[str], source: Path, cached: Path) -> ctypes.CDLL:
    """Compile and load a library; keep it for the next time where that is possible."""
    with tempfile.TemporaryDirectory() as work:
        fresh = Path(work) / cached.name
        _run([*command, str(source), "-o", str(fresh)])
        with contextlib.suppress(OSError):  # a home that cannot be written: built again next time
            cached.parent.mkdir(parents=True, exist_ok=True)
            aside = cached.with_suffix(f".{os.getpid()}")
            shutil.copy(fresh, aside)
            aside.replace(cached)
        return ctypes.CDLL(str(fresh))


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    raise OSError(f"there is no compiler {named}" if named else "there is no C++ compiler")


def _run(command: list[str]) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8", errors="replace"
    ).stdout


def _processor() -> str:
    """Return what tells the instruction sets of processors apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    telling = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(telling)}))
