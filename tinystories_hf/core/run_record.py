"""`run.json`: the run record, written when a run starts and completed when it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinystories_hf.core.environment import now
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import write_json

RUN_RECORD = "run.json"
TRAIN_RESULTS = "train_results.json"
EVAL_RESULTS = "eval_results.json"
SAMPLES_FILE = "samples.md"


@dataclass
class Session:
    """One start of the program; a resumed run has several sessions."""

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
class PretrainedRecord:
    """The model that a run started from; `revision` is None for a folder.

    `loss` is the `loss` section of an evaluation before the first step, None until it is measured.
    """

    name: str
    revision: str | None
    weights_sha256: str
    model_type: str
    license: str | None
    loss: dict[str, Any] | None = None


@dataclass
class RunRecord:
    """Everything needed to repeat a run and to check its results.

    `run_id` identifies the run over all its sessions. Absolute paths are shortened by `portable`,
    so that the record can be published.
    """

    configuration: dict[str, Any]
    dataset: dict[str, Any]
    parameters: dict[str, int]
    run_id: str
    sessions: list[Session] = field(default_factory=list)
    pretrained: PretrainedRecord | None = None

    def write(self, run_dir: Path) -> None:
        """Write `run.json` by one rename, so that no reader sees half of it."""
        write_json(run_dir / RUN_RECORD, asdict(self))

    def state(self, run_dir: Path, stated: Mapping[str, Any]) -> None:
        """Add the licence and languages that were given after the run, for its card."""
        self.configuration.setdefault("hub", {}).update(stated)
        self.write(run_dir)

    def end(self, run_dir: Path, status: Literal["finished", "stopped", "failed"]) -> None:
        """Record how the last session ended."""
        self.sessions[-1].status = status
        self.sessions[-1].finished = now()
        self.write(run_dir)


def read_record(run_dir: Path) -> RunRecord:
    """Read the `run.json` of a run directory.

    Raises:
        UserError: the file is missing, or is not a run record.
    """
    try:
        content = json.loads((run_dir / RUN_RECORD).read_text(encoding="utf-8"))
        sessions = [Session(**session) for session in content.pop("sessions")]
        pretrained = content.pop("pretrained", None)
        return RunRecord(
            **content,
            sessions=sessions,
            pretrained=None if pretrained is None else PretrainedRecord(**pretrained),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run_dir / RUN_RECORD} is missing or not a run record: {error}") from None
