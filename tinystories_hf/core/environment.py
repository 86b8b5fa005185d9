"""The environment that results are recorded with: command, commit, versions, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from tinystories_hf.core.shipped import started_as

NO_PATHS = ("story_separator",)  # settings in which `/` and `~` do not mean a path
LIBRARIES = (
    "tinystories_hf",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "pyarrow",
)


def portable(value: Any) -> Any:
    """Return a setting without the paths of this machine, as it may be published.

    An absolute path below the current folder becomes relative. Any other keeps only its last part;
    its content is identified by its sha256.
    """
    try:
        path = Path(value).expanduser() if isinstance(value, str) else None
    except RuntimeError:  # a text that begins with ~
        return value
    if path is None or not path.is_absolute():
        return value
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else Path(path.name)).as_posix()


def _portable_command(words: list[str]) -> str:
    parts = [word.partition("=") for word in words]
    return shlex.join(f"{portable(flag)}{equal}{portable(value)}" for flag, equal, value in parts)


def describe_environment(device_type: str) -> dict[str, Any]:
    """Return what is recorded with every result: command, time, commit, versions and machine."""
    commit, dirty = git_state()
    return {
        "command": _portable_command([*started_as(), *sys.argv[1:]]),
        "started": now(),
        "git_commit": commit,
        "git_dirty": dirty,
        "versions": library_versions(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "device": describe_device(device_type),
    }


def library_versions(*more: str) -> dict[str, str]:
    """Return the versions of the libraries that results may depend on, and of `more`."""
    names = (*LIBRARIES, *more)
    return {name: version for name in names if (version := _version(name))}


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def git_state() -> tuple[str | None, bool | None]:
    """Return the commit of the code and whether there are local changes; None without git."""
    folder = Path(__file__).resolve().parent
    try:
        root = _git(folder, "rev-parse", "--show-toplevel")
        if Path(root) != folder.parents[1]:
            return None, None
        return _git(folder, "rev-parse", "HEAD"), bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return _output(command).strip()


def _output(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
    )
    return done.stdout


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def describe_device(device_type: str) -> str:
    """Return the name of the accelerator, or the processor and the cores this process may use."""
    import torch

    if device_type == "cuda":
        return torch.cuda.get_device_name()
    if device_type != "cpu":
        return f"{platform.processor() or platform.machine()} ({device_type})"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU {_processor()}, {cores} cores"


def power_limit_watts() -> float | None:
    """Return the power limit of the first NVIDIA GPU in watts, or None if it cannot be read."""
    command = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    try:
        return float(_output(command).splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
