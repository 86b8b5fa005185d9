"""The run directory before a run: whose it is, and where to go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinystories_hf import checkpoints, provenance
from tinystories_hf.arguments import TrainingArguments
from tinystories_hf.checkpoints import Checkpoint, Start
from tinystories_hf.errors import UserError, readable
from tinystories_hf.files import check_writable, locked, remove_created
from tinystories_hf.trajectory import OPEN_ENDED, differences

LOCK = ".lock"
# A process that was killed a moment ago may leave others behind that first have to notice.
PATIENCE_SECONDS = 10.0
AUTO = "auto"


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Hold the run directory for this process alone, and leave none behind that is still empty.

    Raises:
        UserError: another run writes into it, it cannot be written, or it is a file.
    """
    with readable("output_dir", run_dir):
        is_file = run_dir.exists() and not run_dir.is_dir()
    if is_file:
        raise UserError(f"output_dir: {run_dir} is a file; choose another directory")
    check_writable(run_dir, "output_dir", "choose another --output_dir")
    created = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = run_dir / LOCK

    def say() -> None:
        print(f"waiting for another run in {run_dir} to end", file=sys.stderr, flush=True)

    try:
        with locked(lock, PATIENCE_SECONDS, say) as mine:
            if not mine:
                raise UserError(
                    f"output_dir: another run is writing into {run_dir}; wait for its end, or"
                    " choose another --output_dir"
                )
            yield
    finally:
        remove_created(created)


def check_shared(run_dir: Path) -> None:
    """Raise a `UserError` where this process does not see what the first one has created.

    Every process writes its random state into the checkpoints, and reads from them.
    """
    for _ in range(int(PATIENCE_SECONDS * 10)):  # a network folder may show new names late
        if (run_dir / LOCK).exists():
            return
        time.sleep(0.1)
    raise UserError(
        f"output_dir: {run_dir} of the first machine is not there on this one; put it on a storage"
        " that all machines share, under the same path"
    )


def where_to_start(training: TrainingArguments) -> Start:
    """Return the checkpoint that the run continues from; reads every byte of it.

    Raises:
        UserError: the run directory holds another model or run, there is nothing to resume, or what
            there is is damaged.
    """
    run_dir, wanted = Path(training.output_dir), training.resume_from_checkpoint
    with readable("output_dir", run_dir):
        folders = checkpoints.checkpoint_folders(run_dir)
    if wanted is False:
        _refuse_an_existing_run(run_dir, folders)
        return Start()
    if wanted is not True and wanted != AUTO:
        with readable("resume_from_checkpoint", wanted):
            _refuse_a_run_directory(Path(wanted))
            return Start(checkpoints.read_checkpoint(Path(wanted)))
    found = checkpoints.newest_whole(run_dir)
    if found.checkpoint is None and folders:
        raise UserError(
            f"resume_from_checkpoint: no checkpoint in {run_dir} is whole"
            f" ({'; '.join(found.passed_over)}); move them away to start from the beginning"
        )
    if found.checkpoint is None and wanted is True:
        raise UserError(
            f"resume_from_checkpoint: no checkpoint in {run_dir}; start without it, name one, or"
            " give `auto`, which begins where there is none"
        )
    if found.checkpoint is None and not (run_dir / provenance.FILE).exists():
        _refuse_an_existing_run(run_dir, folders)
    return found


def _refuse_a_run_directory(folder: Path) -> None:
    """Raise a `UserError` where a folder is no checkpoint and holds one that can be continued."""
    if not (folder / checkpoints.SEAL).exists():
        inside = checkpoints.newest_whole(folder).checkpoint
        if inside is not None:
            raise UserError(
                f"resume_from_checkpoint: {folder} is a run, not a checkpoint; its newest one that"
                f" is complete is {inside.path}: give that, or `auto` with --output_dir {folder}"
            )


def _refuse_an_existing_run(run_dir: Path, folders: list[Path]) -> None:
    names = [path.name for path in folders]
    # A record alone is of a run that saved nothing: nothing is lost, and nothing to continue.
    names += ["config.json"] if (run_dir / "config.json").exists() else []
    if names:
        raise UserError(
            f"output_dir: {run_dir} already holds a run ({names[0]}); continue it with"
            " --resume_from_checkpoint auto, or choose another --output_dir"
        )


def check_same_run(checkpoint: Checkpoint, trajectory: dict[str, object]) -> None:
    """Raise a `UserError` where going on from a checkpoint would not be going on with its run."""
    changed = differences(checkpoint.seal.trajectory, trajectory)
    if changed:
        raise UserError(
            f"resume_from_checkpoint: {checkpoint.path} is of a run that differs in what decides"
            f" its weights: {'; '.join(changed)}{_why_not_longer(checkpoint, trajectory)}; give the"
            " settings of that run, or start another one in another --output_dir"
        )


def _why_not_longer(checkpoint: Checkpoint, trajectory: dict[str, object]) -> str:
    """Say why another number of steps is another run, where it is."""
    schedule, steps = trajectory["lr_scheduler_type"], trajectory["max_steps"]
    if steps is None or steps == checkpoint.seal.trajectory.get("max_steps"):
        return ""
    return (
        f" (with lr_scheduler_type {schedule} the learning rate of each step depends on the number"
        f" of steps; a run of {', '.join(OPEN_ENDED[:-1])} or {OPEN_ENDED[-1]} can be lengthened)"
    )


def other_versions(checkpoint: Checkpoint) -> str | None:
    """Say which libraries have changed since a checkpoint; None where none has."""
    then, now = checkpoint.seal.versions, provenance.versions()
    changed = [
        f"{name} {then.get(name)} then, {now.get(name)} now"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    ]
    return ", ".join(changed) or None


def is_finished(run_dir: Path, start: Start, max_steps: int) -> bool:
    """Tell whether a run of so many steps has come to its end, results and card included."""
    if start.checkpoint is None or start.checkpoint.seal.step < max_steps:
        return False
    if not (run_dir / provenance.FILE).exists():
        return False
    return provenance.read_record(run_dir).sessions[-1].status == "finished"
