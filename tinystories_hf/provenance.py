"""`run.json`: the birth certificate of a run, written when it starts and completed when it ends."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinystories_hf.arguments import Arguments
from tinystories_hf.batch import BatchPlan
from tinystories_hf.errors import UserError
from tinystories_hf.files import write_json

if TYPE_CHECKING:
    from tinystories_hf.data import Manifest
    from tinystories_hf.modeling import ParameterReport

FILE = "run.json"
TRAIN_RESULTS = "train_results.json"
EVAL_RESULTS = "eval_results.json"
SAMPLES_FILE = "samples.md"
NO_PATHS = ("story_separator",)  # `/` and `~` are none there
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


@dataclass
class Session:
    """One start of the program: a run that was resumed has several."""

    command: str
    started: str
    resumed_from: str | None
    git_commit: str | None
    git_dirty: bool | None
    versions: dict[str, str]
    platform: str
    device: str
    batch: dict[str, int]
    mixed_precision: str
    power_limit_watts: float | None = None
    status: Literal["running", "finished", "stopped", "failed", "killed"] = "running"
    finished: str | None = None


@dataclass
class RunRecord:
    """All that is needed to repeat a run and to trust its numbers.

    `run_id` names the run over all its sessions. Nothing here gives away where on its machine the
    run was made: absolute paths are shortened, see `portable`.
    """

    configuration: dict[str, Any]
    dataset: dict[str, Any]
    parameters: dict[str, int]
    run_id: str
    sessions: list[Session] = field(default_factory=list)

    def write(self, run_dir: Path) -> None:
        """Write `run.json` by one rename, so that no reader sees half of it."""
        write_json(run_dir / FILE, asdict(self))

    def state(self, run_dir: Path, stated: Mapping[str, Any]) -> None:
        """Take the licence and languages that are stated after the run, for its cards."""
        self.configuration.setdefault("hub", {}).update(stated)
        self.write(run_dir)

    def end(self, run_dir: Path, status: Literal["finished", "stopped", "failed"]) -> None:
        """Say how the last session ended."""
        self.sessions[-1].status = status
        self.sessions[-1].finished = now()
        self.write(run_dir)


def start_record(
    run_dir: Path,
    arguments: Arguments,
    manifest: Manifest,
    parameters: ParameterReport,
    session: Session,
) -> RunRecord:
    """Describe a run that begins; the earlier sessions of a resumed one stay."""
    earlier = read_record(run_dir) if (run_dir / FILE).exists() else None
    for session_before in earlier.sessions if earlier else []:
        if session_before.status == "running":  # it had no time to say how it ended
            session_before.status = "killed"
    dataset = asdict(manifest)
    for split in ("train", "validation"):
        dataset[split].pop("tail", None)
    return RunRecord(
        configuration=configuration(arguments),
        dataset={"name": portable(arguments.data.dataset), **dataset},
        parameters=asdict(parameters),
        run_id=earlier.run_id if earlier else uuid.uuid4().hex,
        sessions=[*(earlier.sessions if earlier else []), session],
    )


def portable(value: Any) -> Any:
    """Return a setting as it may be published: an absolute path below here relative, others named.

    What lies elsewhere keeps its last name only; its content is known by its sha256.
    """
    try:
        path = Path(value).expanduser() if isinstance(value, str) else None
    except RuntimeError:  # text that begins with ~
        return value
    if path is None or not path.is_absolute():
        return value
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else Path(path.name)).as_posix()


def _portable_command(words: list[str]) -> str:
    parts = [word.partition("=") for word in words]
    return shlex.join(f"{portable(flag)}{equal}{portable(value)}" for flag, equal, value in parts)


def start_session(
    plan: BatchPlan, mixed_precision: str, device_type: str, resumed_from: str | None
) -> Session:
    """Describe this start of the program and the machine it runs on."""
    return Session(
        **surroundings(device_type),
        resumed_from=portable(resumed_from),
        batch=asdict(plan),
        mixed_precision=mixed_precision,
        power_limit_watts=power_limit_watts() if device_type == "cuda" else None,
    )


def surroundings(device_type: str) -> dict[str, Any]:
    """Return what every number needs beside it: command, time, commit, versions and machine."""
    commit, dirty = git_state()
    return {
        "command": _portable_command([Path(sys.executable).name, *sys.argv]),
        "started": now(),
        "git_commit": commit,
        "git_dirty": dirty,
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "device": describe_device(device_type),
    }


def versions(*more: str) -> dict[str, str]:
    """Return the version of each library that numbers may depend on, and of `more`."""
    names = (*LIBRARIES, *more)
    return {name: version for name in names if (version := _version(name))}


def configuration(arguments: Arguments) -> dict[str, Any]:
    """Return every setting of a run, without what gives its machine away."""
    return {
        name: {
            key: value if key in NO_PATHS else portable(value)
            for key, value in asdict(part).items()
        }
        for name, part in arguments._asdict().items()
    }


def read_record(run_dir: Path) -> RunRecord:
    """Read the `run.json` of a run directory.

    Raises:
        UserError: there is none, or it is not one of ours.
    """
    try:
        content = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
        sessions = [Session(**session) for session in content.pop("sessions")]
        return RunRecord(**content, sessions=sessions)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run_dir / FILE} is missing or not a record of a run: {error}") from None


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def git_state() -> tuple[str | None, bool | None]:
    """Return the commit of the code and whether it has changes; None where there is no git."""
    folder = Path(__file__).resolve().parent
    try:
        root = _git(folder, "rev-parse", "--show-toplevel")
        if Path(root) != folder.parent:
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
    """Return the power limit of the first GPU of NVIDIA, None where it cannot be read."""
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
