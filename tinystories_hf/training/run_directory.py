"""The run directory: locked for one run, checked, and its state."""

from __future__ import annotations

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
# A process that was killed a moment ago may leave others behind that first have to notice.
PATIENCE_SECONDS = 10.0


@contextmanager
def lock_run_directory(run_dir: Path) -> Iterator[None]:
    """Hold the run directory for this process alone, and leave none behind that is still empty.

    Raises:
        UserError: another run writes into it, it cannot be written, or it is a file.
    """
    with reporting_unreadable("output_dir", run_dir):
        is_file = run_dir.exists() and not run_dir.is_dir()
    if is_file:
        raise UserError(f"output_dir: {run_dir} is a file; choose another directory")
    check_writable(run_dir, "output_dir", "choose another --output_dir")
    created = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = run_dir / RUN_LOCK

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
        if (run_dir / RUN_LOCK).exists():
            return
        time.sleep(0.1)
    raise UserError(
        f"output_dir: {run_dir} of the first machine is not there on this one; put it on a storage"
        " that all machines share, under the same path"
    )


def is_finished(run_dir: Path, start: StartPoint, max_steps: int) -> bool:
    """Tell whether a run of so many steps has come to its end, results and card included."""
    if start.checkpoint is None or start.checkpoint.seal.step < max_steps:
        return False
    if not (run_dir / run_record.RUN_RECORD).exists():
        return False
    return run_record.read_record(run_dir).sessions[-1].status == "finished"
