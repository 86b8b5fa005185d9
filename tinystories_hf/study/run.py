"""Run the cells of a study, each as a run of scripts/train.py under `accelerate launch`."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tinystories_hf.core.device import device_type
from tinystories_hf.core.errors import RunError, Stopped, UserError
from tinystories_hf.core.run_record import RUN_RECORD, read_record
from tinystories_hf.core.shipped import shipped
from tinystories_hf.study.arguments import StudyArguments, StudyRequest
from tinystories_hf.study.cells import Study, cell_arguments, cell_flags, read_study
from tinystories_hf.study.collect import (
    STUDY_CSV,
    CellResult,
    cell_folder,
    finished_rows,
    is_cell_finished,
    read_curve,
    read_rows,
    write_rows,
)
from tinystories_hf.study.rates import law_of, sweep_optima
from tinystories_hf.study.report import write_study

RESUME = "the same command continues the study"
_SET_DEATH_SIGNAL = 1


def run_study(request: StudyRequest) -> list[CellResult]:
    """Run the cells that are not finished, and write the results of all that are.

    Raises:
        UserError: the study or a number in `only` is wrong, or a cell needs the sweep first.
        RunError: a cell failed; its own message is above.
        Stopped: by a signal or `max_hours`.
    """
    arguments, lists = request
    study = read_study(Path(arguments.study), arguments.settings)
    folder = Path(arguments.output_dir or Path("studies", study.name))
    if lists:
        list_cells(study, folder)
        return []
    chosen = [] if arguments.collect else _chosen(study, arguments.only)
    deadline = (
        None if arguments.max_hours is None else time.monotonic() + 3600 * arguments.max_hours
    )
    for number in chosen:
        if not is_cell_finished(cell_folder(folder, study.cells[number])):
            run_cell(study, number, folder, arguments, deadline)
    if arguments.only is not None:
        return []
    return collect(study, folder, arguments.compare)


def collect(study: Study, folder: Path, compare: Sequence[str] = ()) -> list[CellResult]:
    """Write the results of the finished cells: `study.csv`, `study.md` and the figures.

    Raises:
        UserError: no cell is finished, or a file in `compare` is not a `study.csv`.
    """
    others = {str(Path(name).parent.name): read_rows(Path(name)) for name in compare}
    rows = finished_rows(study, folder)
    if not rows:
        raise UserError(f"{folder}: no cell is finished; run the study first")
    write_rows(rows, folder / STUDY_CSV)
    curves = {row.name: read_curve(cell_folder(folder, study.cells[row.cell])) for row in rows}
    optima = sweep_optima(rows)
    try:
        law = law_of(study, folder) if optima else None
    except UserError:
        law = None
    page = write_study(study.name, rows, len(study.cells), curves, optima, law, others, folder)
    print(f"results     {folder / STUDY_CSV}, {page}", flush=True)
    return rows


def _chosen(study: Study, only: int | None) -> list[int]:
    if only is None:
        return list(range(len(study.cells)))
    if not 0 <= only < len(study.cells):
        raise UserError(f"only: {only}; the study has the cells 0 to {len(study.cells) - 1}")
    return [only]


def list_cells(study: Study, folder: Path) -> None:
    """Print the cells with their numbers, what they cost and whether they are finished."""
    for number, cell in enumerate(study.cells):
        arguments = cell_arguments(study, cell)
        done = "finished" if is_cell_finished(cell_folder(folder, cell)) else "to do"
        length = arguments.training.max_steps
        steps = (
            f"{length:,} steps" if length > 0 else f"{arguments.training.num_train_epochs:g} epochs"
        )
        print(f"{number:4}  {done:8}  {cell.name}, {steps}")


def run_cell(
    study: Study, number: int, folder: Path, arguments: StudyArguments, deadline: float | None
) -> None:
    """Train a cell, or go on with it."""
    cell = study.cells[number]
    rate = (
        law_of(study, folder)(cell_arguments(study, cell).model.hidden_size)
        if cell.by_law
        else None
    )
    rate = None if rate is None else float(f"{rate:.3g}")
    run = cell_folder(folder, cell)
    own = "one_gpu.yaml" if device_type() == "cuda" else "cpu.yaml"
    launch_config = arguments.accelerate_config or str(shipped("configs") / "accelerate" / own)
    launcher = ["-m", "accelerate.commands.launch", "--config_file", launch_config]
    settings = cell_arguments(study, cell, rate)
    command = [
        # One thread only prevents a warning: each process uses its share of the cores.
        *(sys.executable, *launcher, "--num_cpu_threads_per_process", "1"),
        *(str(shipped("scripts") / "train.py"), "--config", str(study.config), *cell_flags(cell)),
        *(() if rate is None else ("--learning_rate", repr(rate))),
        *("--max_steps", str(settings.training.max_steps)),
        *("--output_dir", str(run), "--resume_from_checkpoint", "auto"),
    ]
    print(f"cell        {number} of {len(study.cells)}: {cell.name}", flush=True)
    reason = _run(command, deadline)
    status = read_record(run).sessions[-1].status if (run / RUN_RECORD).is_file() else None
    if reason is not None:
        raise Stopped(f"by {reason} in cell {number}; {RESUME}")
    if not is_cell_finished(run):
        raise RunError(f"cell {number} ({cell.name}) ended as {status}; see its message above")


def _run(command: list[str], deadline: float | None) -> str | None:
    """Run a command to its end; return why it was stopped, None if it was not."""
    reason: list[str] = []
    with subprocess.Popen(command, preexec_fn=_end_with_parent) as child:

        def stop(number: int, _: FrameType | None) -> None:
            reason.append(signal.Signals(number).name)
            child.send_signal(signal.SIGTERM)

        with _handling(stop):
            try:
                child.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                reason.append("--max_hours")
                child.send_signal(signal.SIGTERM)
                child.wait()
    return reason[0] if reason else None


def _end_with_parent() -> None:
    """Let the kernel stop the launcher if the study is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def _handling(stop: object) -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
