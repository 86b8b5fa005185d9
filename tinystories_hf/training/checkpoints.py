"""Atomic checkpoints: written to a temporary folder, recorded, synced, renamed, and verified.

The record (`checkpoint.json`, written last) contains the step, the size and sha256 of every file,
and the settings that determine the weights. A folder without a record, or whose files do not match
it, is not a valid checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments as TrainerArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.files import (
    file_sha256,
    free_bytes,
    reporting_full_disk,
    sync,
    sync_tree,
    write_json,
)

CHECKPOINT_RECORD = "checkpoint.json"
TEMPORARY_FOLDER = ".unfinished"
# Space for the small files of a checkpoint, the log, and rounding by the file system.
SPARE_BYTES = 4 << 20


@dataclass(frozen=True)
class RecordedFile:
    """Size and sha256 of a file when it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointRecord:
    """The content of `checkpoint.json`.

    Attributes:
        step: The optimizer step.
        trajectory: The settings that determine the weights; see `resume.weight_settings`.
        versions: The versions of the libraries.
        files: Size and sha256 of each file, by path relative to the folder.
    """

    step: int
    trajectory: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, RecordedFile]


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint."""

    path: Path
    record: CheckpointRecord


@dataclass(frozen=True)
class StartPoint:
    """Where training starts.

    `checkpoint` is None for a new run; `skipped` says why newer checkpoints are not valid.
    """

    checkpoint: Checkpoint | None = None
    skipped: list[str] = field(default_factory=list)


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return run_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """Return the folders that are named like checkpoints, newest first."""
    if not run_dir.is_dir():
        return []
    named = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    found = [path for path in run_dir.iterdir() if named.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step_in_name, reverse=True)


def _step_in_name(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def newest_valid_checkpoint(run_dir: Path) -> StartPoint:
    """Return the newest valid checkpoint; invalid ones are left in place."""
    skipped: list[str] = []
    for path in checkpoint_folders(run_dir):
        try:
            return StartPoint(read_checkpoint(path), skipped)
        except UserError as error:
            skipped.append(str(error))
    return StartPoint(None, skipped)


def read_checkpoint(path: Path, *, every_byte: bool = True) -> Checkpoint:
    """Verify a checkpoint and return it.

    Args:
        path: The folder of the checkpoint.
        every_byte: Compare the sha256 of every file, not only names and sizes.

    Raises:
        UserError: the checkpoint is missing, incomplete or damaged; the message says how.
    """
    if not path.exists():
        raise UserError(f"{path} is not a valid checkpoint: it does not exist")
    if not (path / CHECKPOINT_RECORD).exists():
        raise UserError(f"{path} is not a valid checkpoint: it has no {CHECKPOINT_RECORD}")
    try:
        content = json.loads((path / CHECKPOINT_RECORD).read_text(encoding="utf-8"))
        if content.pop("sha256") != _digest(content):
            raise ValueError("its content has changed")
        files = {name: RecordedFile(**facts) for name, facts in content.pop("files").items()}
        checkpoint = Checkpoint(path, CheckpointRecord(**content, files=files))
        wrong = _difference(checkpoint, every_byte)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"{CHECKPOINT_RECORD} cannot be read ({error})"
    if wrong is not None:
        raise UserError(f"{path} is not a valid checkpoint: {wrong}")
    return checkpoint


def _difference(checkpoint: Checkpoint, every_byte: bool) -> str | None:
    """Return how a folder differs from its record, or None if it matches."""
    path, record = checkpoint.path, checkpoint.record
    if _is_numbered(path) and record.step != _step_in_name(path):
        return f"its {CHECKPOINT_RECORD} is for step {record.step}"
    for name, facts in record.files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts.bytes:
            return f"{name} has {file.stat().st_size:,} bytes instead of {facts.bytes:,}"
        if every_byte and file_sha256(file) != facts.sha256:
            return f"the content of {name} has changed since it was written"
    return None


def _is_numbered(path: Path) -> bool:
    return re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name) is not None


@contextmanager
def writing_checkpoint(run_dir: Path, needed: int) -> Iterator[Path]:
    """Yield a temporary folder to write a checkpoint into; leftovers of a killed run are deleted.

    Raises:
        RunError: fewer than `needed` bytes are free, or the disk became full while writing. The
            folder is then deleted; existing checkpoints are not touched.
    """
    temporary = run_dir / TEMPORARY_FOLDER
    shutil.rmtree(temporary, ignore_errors=True)
    free = free_bytes(run_dir)
    if free < needed:
        raise RunError(
            f"{run_dir}: a checkpoint needs {needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB"
            " are free; free disk space, then run the same command with"
            " --resume_from_checkpoint auto"
        )
    try:
        with reporting_full_disk(run_dir, "saving a checkpoint"):
            temporary.mkdir()
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_checkpoint_record(
    folder: Path, step: int, trajectory: Mapping[str, Any], versions: dict[str, str]
) -> None:
    """Write the record of the files in a folder, and sync the folder to disk."""
    files = {
        path.relative_to(folder).as_posix(): RecordedFile(path.stat().st_size, file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = json.loads(
        json.dumps(asdict(CheckpointRecord(step, dict(trajectory), versions, files)))
    )
    write_json(folder / CHECKPOINT_RECORD, {**content, "sha256": _digest(content)})
    sync_tree(folder)


def _digest(content: Any) -> str:
    """Return the sha256 of JSON content; it protects the record itself."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def publish_checkpoint_folder(folder: Path, run_dir: Path, step: int) -> Path:
    """Rename a recorded folder to its final name; an invalid one of that name is kept, renamed."""
    target = checkpoint_folder(run_dir, step)
    replaced = run_dir / f"{TEMPORARY_FOLDER}-replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        valid = _is_valid(target)
        target.rename(replaced if valid else _free_name(run_dir / f"damaged-{target.name}"))
    folder.rename(target)
    sync(run_dir)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _is_valid(path: Path, *, every_byte: bool = True) -> bool:
    try:
        read_checkpoint(path, every_byte=every_byte)
    except UserError:
        return False
    return True


def delete_old_checkpoints(
    run_dir: Path, step: int, limit: int | None, best_step: int | None = None
) -> None:
    """Delete all but the newest `limit` valid checkpoints up to `step`, the one just written.

    The checkpoint of `best_step` counts but is never deleted, so that two remain with limit 1.

    Invalid checkpoints are not counted and not deleted, so that the user can inspect them. Only
    names and sizes are checked here: the newest checkpoint is known to be valid, and reading three
    checkpoints of 120 MB at each save took 0.5 s instead of 0.03 s. Checkpoints after `step` were
    skipped when the run resumed, and stay until their step is saved again.
    """
    if limit is None:
        return
    best = None if best_step in (None, step) else best_step
    kept = 0 if best is None else 1
    limit = max(limit, kept + 1)
    for path in checkpoint_folders(run_dir):
        number = _step_in_name(path)
        if number > step or number == best or not _is_valid(path, every_byte=False):
            continue
        kept += 1
        if kept > limit:
            # Rename first, so that a partly deleted folder is never named like a checkpoint.
            deleted = run_dir / f"{TEMPORARY_FOLDER}-going"
            shutil.rmtree(deleted, ignore_errors=True)
            path.rename(deleted)
            shutil.rmtree(deleted)


def bytes_of_checkpoint(parameters: int) -> int:
    """Estimate the size of a checkpoint: fp32 weights and the two moments of AdamW."""
    return 3 * 4 * parameters + SPARE_BYTES


def check_disk_for_checkpoints(run_dir: Path, parameters: int, checkpoints: int) -> None:
    """Check that the checkpoints of a run and its model fit on the disk.

    Args:
        run_dir: The run directory; its existing checkpoints are counted.
        parameters: The number of parameters of the model.
        checkpoints: The number of checkpoints kept; space for one more is needed while it is
            written, and a third of that for the model.

    Raises:
        UserError: too little disk space is free.
    """
    existing = len(checkpoint_folders(run_dir))
    needed = (max(checkpoints - existing, 0) + 1) * bytes_of_checkpoint(parameters) + 4 * parameters
    free = free_bytes(run_dir)
    if free < needed:
        raise UserError(
            f"output_dir: {checkpoints} checkpoints and the model need {needed / 1e6:,.0f} MB, but"
            f" only {free / 1e6:,.0f} MB are free at {run_dir}; free disk space, use another"
            " output_dir, or lower save_total_limit"
        )


def checkpoints_kept(
    trainer_arguments: TrainerArguments, steps: int, epochs: float, limit: int | None
) -> int:
    """Return the number of checkpoints in the run directory at the end of the run, at most."""
    every = trainer_arguments.save_steps
    strategy = trainer_arguments.save_strategy
    if strategy == "no":
        return 0
    if strategy == "epoch":
        saved = math.ceil(epochs)
    else:
        saved = math.ceil(steps / (every if every >= 1 else math.ceil(steps * every)))
    return saved if limit is None else min(saved, limit)
