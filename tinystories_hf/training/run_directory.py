"""Lock and check the run directory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinystories_hf.core import run_record
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.core.files import check_writable, locked, remove_created
from tinystories_hf.training.checkpoints import StartPoint

RUN_LOCK = ".lock"
# Other processes of a run that was just killed may need a moment to notice and release the lock.
PATIENCE_SECONDS = 10.0


@contextmanager
def lock_run_directory(run_dir: Path) -> Iterator[None]:
    """Lock the run directory for this run; delete it afterwards if it is still empty.

    Raises:
        UserError: another run is writing into it, it is not writable, or it is a file.
    """
    with reporting_unreadable("output_dir", run_dir):
        is_file = run_dir.exists() and not run_dir.is_dir()
    if is_file:
        raise UserError(f"output_dir: {run_dir} is a file; use another directory")
    check_writable(run_dir, "output_dir", "use another --output_dir")
    created = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = run_dir / RUN_LOCK

    def report_waiting() -> None:
        print(f"waiting for another run in {run_dir} to finish", file=sys.stderr, flush=True)

    try:
        with locked(lock, PATIENCE_SECONDS, report_waiting) as acquired:
            if not acquired:
                raise UserError(
                    f"output_dir: another run is writing into {run_dir}; wait until it finishes, or"
                    " use another --output_dir"
                )
            yield
    finally:
        remove_created(created)


def check_run_directory_is_shared(run_dir: Path) -> None:
    """Check that this process sees the run directory that the main process has created.

    Every process writes its random state into the checkpoints, and reads from them.

    Raises:
        UserError: the run directory is not visible.
    """
    for _ in range(int(PATIENCE_SECONDS * 10)):  # a network file system may show new files late
        if (run_dir / RUN_LOCK).exists():
            return
        time.sleep(0.1)
    raise UserError(
        f"output_dir: {run_dir} of the first machine does not exist on this one; use a path on"
        " storage that all machines share"
    )


def is_finished(run_dir: Path, start: StartPoint, max_steps: int, save_strategy: str) -> bool:
    """Return whether a run of `max_steps` steps is finished, including its results and card.

    With a `save_strategy` other than steps the last step may have no checkpoint; the number of
    steps is read from the results.
    """
    if not (run_dir / run_record.RUN_RECORD).exists():
        return False
    if run_record.read_record(run_dir).sessions[-1].status != "finished":
        return False
    if save_strategy == "steps":
        return start.checkpoint is not None and start.checkpoint.record.step >= max_steps
    results = json.loads((run_dir / run_record.TRAIN_RESULTS).read_text(encoding="utf-8"))
    return int(results["steps"]) >= max_steps
