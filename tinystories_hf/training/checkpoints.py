"""Checkpoints that are whole or not there: written aside, sealed, synced, renamed; read with doubt.

The seal (`checkpoint.json`, written last) names the step, every file with its size and sha256, and
what decided the weights. A folder without one, or that does not match it, is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
ASIDE = ".unfinished"
# Besides the files of a checkpoint: names, the log, and what the file system rounds up.
SPARE_BYTES = 4 << 20


@dataclass(frozen=True)
class RecordedFile:
    """A file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointRecord:
    """What a whole checkpoint holds: its files by name, and what decided its weights."""

    step: int
    trajectory: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, RecordedFile]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    seal: CheckpointRecord


@dataclass(frozen=True)
class StartPoint:
    """Where a run begins: its checkpoint, None for step 0; and what newer ones lacked."""

    checkpoint: Checkpoint | None = None
    passed_over: list[str] = field(default_factory=list)


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step belongs."""
    return run_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """Return the folders that have the name of a checkpoint, the newest first."""
    if not run_dir.is_dir():
        return []
    named = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    found = [path for path in run_dir.iterdir() if named.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step_in_name, reverse=True)


def _step_in_name(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def newest_valid_checkpoint(run_dir: Path) -> StartPoint:
    """Return the newest checkpoint that is whole; nothing is deleted."""
    passed_over: list[str] = []
    for path in checkpoint_folders(run_dir):
        try:
            return StartPoint(read_checkpoint(path), passed_over)
        except UserError as error:
            passed_over.append(str(error))
    return StartPoint(None, passed_over)


def read_checkpoint(path: Path, *, every_byte: bool = True) -> Checkpoint:
    """Return a checkpoint after every byte of it was read; else only its seal, names and sizes.

    Raises:
        UserError: it is not whole; the message says what is wrong.
    """
    if not path.exists():
        raise UserError(f"{path} is not a whole checkpoint: it is not there")
    if not (path / CHECKPOINT_RECORD).exists():
        raise UserError(f"{path} is not a whole checkpoint: it has no {CHECKPOINT_RECORD}")
    try:
        content = json.loads((path / CHECKPOINT_RECORD).read_text(encoding="utf-8"))
        if content.pop("sha256") != _digest(content):
            raise ValueError("other bytes than were written")
        files = {name: RecordedFile(**facts) for name, facts in content.pop("files").items()}
        checkpoint = Checkpoint(path, CheckpointRecord(**content, files=files))
        wrong = _difference(checkpoint, every_byte)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"{CHECKPOINT_RECORD} cannot be read ({error})"
    if wrong is not None:
        raise UserError(f"{path} is not a whole checkpoint: {wrong}")
    return checkpoint


def _difference(checkpoint: Checkpoint, every_byte: bool) -> str | None:
    """Say in what a folder differs from its seal; None where it does not."""
    path, seal = checkpoint.path, checkpoint.seal
    if _is_numbered(path) and seal.step != _step_in_name(path):
        return f"its {CHECKPOINT_RECORD} is of step {seal.step}"
    for name, facts in seal.files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts.bytes:
            return f"{name} has {file.stat().st_size:,} of {facts.bytes:,} bytes"
        if every_byte and file_sha256(file) != facts.sha256:
            return f"{name} has other bytes than were written"
    return None


def _is_numbered(path: Path) -> bool:
    return re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", path.name) is not None


@contextmanager
def writing_checkpoint(run_dir: Path, needed: int) -> Iterator[Path]:
    """Yield a folder for a checkpoint that is being written; what a killed run left in it goes.

    Raises:
        RunError: fewer than `needed` bytes are free, or the disk filled up meanwhile. The folder is
            removed, and nothing else was touched.
    """
    aside = run_dir / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    free = free_bytes(run_dir)
    if free < needed:
        raise RunError(
            f"{run_dir}: a checkpoint takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are"
            " free; make space and give the same command again with --resume_from_checkpoint auto"
        )
    try:
        with reporting_full_disk(run_dir, "saving a checkpoint"):
            aside.mkdir()
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_checkpoint_record(
    folder: Path, step: int, trajectory: Mapping[str, Any], versions: dict[str, str]
) -> None:
    """Describe the files of a folder, and bring all of it to the disk."""
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
    """Return the sha256 of JSON: the seal vouches for the files, this for the seal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def publish_checkpoint_folder(folder: Path, run_dir: Path, step: int) -> Path:
    """Give a sealed folder its name; what had that name and is not whole is kept under another."""
    target = checkpoint_folder(run_dir, step)
    replaced = run_dir / f"{ASIDE}-replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        whole = _is_sealed(target)
        target.rename(replaced if whole else _free_name(run_dir / f"damaged-{target.name}"))
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


def _is_sealed(path: Path, *, every_byte: bool = True) -> bool:
    """Tell whether a checkpoint is whole, as far as reading it tells."""
    try:
        read_checkpoint(path, every_byte=every_byte)
    except UserError:
        return False
    return True


def delete_old_checkpoints(run_dir: Path, step: int, limit: int | None) -> None:
    """Keep the newest `limit` whole checkpoints up to `step`, which was written a moment ago.

    What is not whole is left alone: it does not count, and its owner may want to look at it. Names
    and sizes tell that here: the newest is whole in any case, and to read three checkpoints of
    120 MB at each save took 0.5 s, not 0.03 s. Those after `step` were passed over when the run
    went on, and are left alone until their step is saved again.
    """
    if limit is None:
        return
    kept = 0
    for path in checkpoint_folders(run_dir):
        if _step_in_name(path) > step or not _is_sealed(path, every_byte=False):
            continue
        kept += 1
        if kept > limit:
            # By another name first: half a checkpoint must not have that of a whole one.
            going = run_dir / f"{ASIDE}-going"
            shutil.rmtree(going, ignore_errors=True)
            path.rename(going)
            shutil.rmtree(going)


def bytes_of_checkpoint(parameters: int) -> int:
    """Return about how much a checkpoint takes: fp32 weights and the two moments of AdamW."""
    return 3 * 4 * parameters + SPARE_BYTES


def check_disk_for_checkpoints(run_dir: Path, parameters: int, checkpoints: int) -> None:
    """Raise a `UserError` unless a run's checkpoints fit on the disk beside those it has.

    `checkpoints` is how many there will be at the same time; one more is being written, and the
    model itself is a third of one.
    """
    there = len(checkpoint_folders(run_dir))
    needed = (max(checkpoints - there, 0) + 1) * bytes_of_checkpoint(parameters) + 4 * parameters
    free = free_bytes(run_dir)
    if free < needed:
        raise UserError(
            f"output_dir: {checkpoints} checkpoints and the model need {needed / 1e6:,.0f} MB and"
            f" {free / 1e6:,.0f} MB are free at {run_dir}; make space, choose another output_dir,"
            " or keep fewer with save_total_limit"
        )
