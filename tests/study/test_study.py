"""A study ends with the same table however often it is stopped, and whoever runs its cells."""

from __future__ import annotations

import csv
import ctypes
import os
import random
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, TINY_CONFIG
from tests.support.forked import ForkedProcess, run_forked
from tinystories_hf.core.errors import RunError, Stopped, UserError
from tinystories_hf.study import run
from tinystories_hf.study.arguments import StudyArguments, StudyRequest, parse_study_arguments
from tinystories_hf.study.cells import read_study
from tinystories_hf.study.collect import CellResult, read_rows
from tinystories_hf.study.rates import law_of
from tinystories_hf.study.report import cells_table
from tinystories_hf.study.run import run_study

CELLS = """
base: tiny.yaml
settings: {eval_steps: 4, save_steps: 2, logging_steps: 2, lr_scheduler_type: constant}
learning_rate_sweep:
  {hidden_size: [16, 32], learning_rate: [1.0e-4, 3.0e-2, 0.9], max_steps: 4, num_layers: 2}
cells:
  - {hidden_size: [16, 64], num_layers: [2, 4], max_steps: 8}
  - {hidden_size: 64, num_heads: [1, 2], num_layers: 2, max_steps: 8, seed: 1}
  - {hidden_size: 64, train_share: 0.5, num_layers: 2, max_steps: 8}
  - {hidden_size: [16, 64], flops: 3.0e+9}
"""
COUNT = 6 + 4 + 2 + 1 + 2
# Cells that tests run once more, of those that have run: one of the sweep, and others.
AGAIN = (5, 7, 10, 14)


def train_forked(command: list[str], deadline: float | None) -> str | None:
    """Run the training command of a cell in a fork of this process instead of a new launch."""
    script = next(i for i, word in enumerate(command) if word.endswith("train.py"))
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        code = 1
        try:
            sys.argv = command[script:]
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.waitpid(child, 0)
    return None


def study_here(*flags: str) -> None:
    """Run the study of this folder, its cells as forks."""
    run._run = train_forked
    run_study(parse_study_arguments(["--study", "study.yaml", "--output_dir", "out", *flags]))


def new_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    (folder / "study.yaml").write_text(CELLS)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results of a study that ran undisturbed."""
    folder = new_folder(tmp_path_factory.mktemp("study") / "whole")
    home = {"HF_HOME": str(folder.parent / "home")}
    done = run_forked(folder, study_here, variables=home)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def table(folder: Path) -> list[CellResult]:
    return read_rows(folder / "study.csv")


def test_every_cell_is_a_run_and_a_row(whole: Path) -> None:
    rows = table(whole)
    assert [row.cell for row in rows] == list(range(COUNT))
    assert sum(row.is_sweep for row in rows) == 6
    assert {row.rate_by_law for row in rows if not row.is_sweep} == {True}
    for row in rows:
        assert (whole / "runs" / row.name / "model.safetensors").is_file()
        assert row.tokens == row.steps * 8 * 64
        assert row.parameters == (
            row.block_parameters + row.embedding_parameters + row.position_parameters
        )
    law = law_of(read_study(whole.parent / "study.yaml"), whole)
    rates = {row.hidden_size: row.learning_rate for row in rows if row.rate_by_law}
    assert rates == {width: float(f"{law(width):.3g}") for width in (16, 64)}
    half, full = rows[12], rows[8]
    assert (half.train_share, full.train_share) == (0.5, 1.0)
    assert half.steps == full.steps
    assert half.validation_loss != full.validation_loss


def test_the_page_has_the_papers_numbers_and_the_figures(whole: Path) -> None:
    page = (whole / "study.md").read_text(encoding="utf-8")
    assert "2.38 (0.853)" in page  # Figure 4: hidden size 64, 2 layers
    assert "Learning rate = " in page
    drawn = {path.stem for path in whole.glob("*.png")}
    assert drawn == {
        *("loss-over-steps", "loss-by-shape", "loss-by-compute", "loss-by-heads", "loss-by-data"),
        "loss-by-learning-rate",
    }
    for path in whole.glob("*.png"):
        assert f"({path.name})" in page
        with Image.open(path) as image:
            assert image.size == (910, 546)


def test_a_study_that_is_killed_at_random_ends_with_the_same_table(
    whole: Path, tmp_path: Path
) -> None:
    folder, draw, kills = partly_run(tmp_path / "killed", whole), random.Random(5), 0
    home = {"HF_HOME": str(whole.parent.parent / "home")}
    said = (folder / "out.txt", folder / "err.txt")
    while kills < 10:
        process = ForkedProcess(folder, said, study_here, variables=home)
        time.sleep(draw.uniform(0.2, 1.2))
        if process.poll() is not None:
            break
        process.kill()
        process.wait(30)
        kills += 1
    done = run_forked(folder, study_here, variables=home)
    assert done.returncode == 0, done.stderr
    assert kills >= 5
    expected, found = ((f / "study.csv").read_bytes() for f in (whole, folder / "out"))
    assert found == expected


def test_cells_run_one_by_one_and_collected_give_the_same_files(
    whole: Path, tmp_path: Path
) -> None:
    folder = partly_run(tmp_path / "single", whole)
    home = {"HF_HOME": str(whole.parent.parent / "home")}
    done = run_forked(folder, run_cells_one_by_one, variables=home)
    assert done.returncode == 0, done.stderr
    for path in (*whole.glob("*.csv"), *whole.glob("*.md"), *whole.glob("*.png")):
        assert (folder / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def partly_run(folder: Path, whole: Path) -> Path:
    """Return a folder with the runs of a study but for the cells of `AGAIN`."""
    new_folder(folder)
    missing = [table(whole)[number].name for number in AGAIN]
    shutil.copytree(whole / "runs", folder / "out" / "runs", ignore=lambda *_: missing)
    return folder


def run_cells_one_by_one() -> None:
    """Run the missing cells by number, the sweep first as it must be, then collect."""
    with pytest.raises(UserError, match="the cells 5 to 5 find the learning rate; run them first"):
        study_here("--only", "7")
    for number in AGAIN:
        study_here("--only", str(number))
        assert not Path("out/study.csv").exists()
    study_here("--collect")


def request(*flags: str) -> StudyRequest:
    return parse_study_arguments(["--study", "study.yaml", "--output_dir", "out", *flags])


def test_requests_that_make_no_sense_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    monkeypatch.chdir(new_folder(tmp_path / "study"))
    for flags, message in (
        (("--only", str(COUNT)), f"only: {COUNT}; the study has the cells 0 to {COUNT - 1}"),
        (("--collect",), "no cell is finished; run the study first"),
        (("--only", "1", "--collect"), "give one of --only and --collect"),
        (("--max_hours", "0"), "max_hours must be positive"),
    ):
        with pytest.raises(UserError, match=message):
            run_study(request(*flags))
    wrong = tmp_path / "other.csv"
    wrong.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"is not the study\.csv of a study"):
        read_rows(wrong)
    monkeypatch.setattr(run, "_run", lambda *_: "SIGTERM")
    with pytest.raises(Stopped, match="by SIGTERM in cell 0; the same command continues"):
        run_study(request())
    monkeypatch.setattr(run, "_run", lambda *_: None)
    with pytest.raises(RunError, match="ended as None; see its message above"):
        run_study(request())
    (tmp_path / "study" / "out").symlink_to(whole)
    assert run_study(StudyRequest(StudyArguments("study.yaml", "out"), lists=True)) == []


def test_the_runs_of_another_study_are_not_taken_for_its_cells(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_folder(tmp_path / "changed")
    (folder / "study.yaml").write_text(
        CELLS.replace("logging_steps: 2", "logging_steps: 2, seed: 9")
    )
    monkeypatch.chdir(folder)
    (folder / "out").symlink_to(whole)
    with pytest.raises(UserError, match=r"was trained with seed .*, but the study asks for 9"):
        run_study(request("--collect"))


def test_another_study_is_drawn_into_the_figures(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_folder(tmp_path / "compared")
    monkeypatch.chdir(folder)
    shutil.copytree(whole, "out")
    before = (folder / "out" / "loss-by-shape.png").read_bytes()
    run_study(request("--collect", "--compare", str(whole / "study.csv")))
    assert (folder / "out" / "loss-by-shape.png").read_bytes() != before
    with (folder / "out" / "study.csv").open(encoding="utf-8", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == COUNT


@pytest.mark.launches
def test_a_limit_of_time_stops_the_launched_run_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """The real launcher: stopped after a second, then the cell is trained to its end."""
    monkeypatch.chdir(new_folder(tmp_path / "limited"))
    monkeypatch.setenv("HF_HOME", str(whole.parent.parent / "home"))
    with pytest.raises(Stopped, match="by --max_hours in cell 0"):
        run_study(request("--max_hours", "0.0003"))
    run_study(request("--only", "0"))
    assert (Path("out/runs") / table(whole)[0].name / "model.safetensors").is_file()


def test_the_page_of_studies_shows_what_was_recorded() -> None:
    rows = read_rows(ROOT / "docs" / "results" / "miniature" / "study.csv")
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    assert cells_table([row for row in rows if not row.is_sweep]) in page
    pair = [row.bits_per_byte for row in rows if (row.hidden_size, row.seed) == (128, 43)]
    same = next(row for row in rows if row.name == "hidden_size-128_num_layers-2_tokens-400000")
    assert f"{abs(pair[0] - same.bits_per_byte):.3f} bits per byte apart" in page
    shares = [f"{row.bits_per_byte:.3f}" for row in rows if row.budget == "tokens 1.2e+06"]
    assert f"({', '.join(shares)} bits per byte" in page
