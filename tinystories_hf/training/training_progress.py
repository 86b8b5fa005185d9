"""The state of a run that the Trainer's own checkpoint does not contain."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tinystories_hf.core.files import write_json

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class TrainingProgress:
    """The content of `progress.json`.

    Attributes:
        accumulated_loss: The sum of the losses since the last log, one for each process.
        last_logged_step: The step of the last log.
        training_seconds: The training time so far, over all sessions.
        evaluation_due: Whether the run was stopped before the evaluation of this step.
    """

    accumulated_loss: list[float]
    last_logged_step: int
    training_seconds: float
    evaluation_due: bool


def write_progress(checkpoint: Path, progress: TrainingProgress) -> None:
    """Write the progress into the folder of a checkpoint."""
    write_json(checkpoint / PROGRESS_FILE, asdict(progress))


def read_progress(checkpoint: Path) -> TrainingProgress:
    """Read the progress from the folder of a verified checkpoint."""
    return TrainingProgress(**json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8")))
