"""The same global batch and losses with one process, several processes and several machines."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import LAUNCH, ROOT, TINY_CONFIG, environment, made_once
from tests.support.forked import free_port, launched, start_forked, train_forked
from tinystories_hf.data.manifest import rows_file

FLAGS = ("--max_steps", "50", "--seed", "3", "--save_steps", "50", "--eval_steps", "25")


def losses(folder: Path) -> dict[int, float]:
    state = json.loads((folder / "run" / "checkpoint-50" / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with one process."""
    return made_once(tmp_path_factory, "alone", lambda folder: train_forked(folder, *FLAGS))


def check_the_same(folder: Path, alone: Path, processes: int) -> None:
    """Check that a run has the losses of the one in `alone`, and wrote its files once."""
    expected, found = losses(alone), losses(folder)
    assert len(expected) == len(found) == 50
    assert max(abs(expected[step] - found[step]) for step in expected) < 1e-4
    assert expected[1] > expected[50] + 0.5, "both losses fall"
    record = json.loads((folder / "run" / "run.json").read_text())
    (session,) = record["sessions"]
    assert session["batch"]["num_processes"] == processes
    assert session["batch"]["global_batch_size"] == 8
    samples = (folder / "run" / "samples.md").read_text()
    assert [samples.count(f"## Step {step}\n") for step in (25, 50)] == [1, 1]
    (prepared,) = (folder / "home" / "tinystories_hf").iterdir()
    (same,) = (alone / "home" / "tinystories_hf").iterdir()
    assert rows_file(prepared, "train").read_bytes() == rows_file(same, "train").read_bytes()


def test_several_processes_train_as_one(tmp_path: Path, alone: Path) -> None:
    train_forked(tmp_path, *FLAGS, num_processes=2)
    check_the_same(tmp_path, alone, 2)


def test_more_processes_train_as_one(tmp_path: Path, alone: Path) -> None:
    train_forked(tmp_path, *FLAGS, num_processes=4)
    check_the_same(tmp_path, alone, 4)


def train_on_two_machines(*folders: Path) -> list[tuple[int, str, str]]:
    """Start one process in each folder, as two launchers that form one group."""
    port = str(free_port())
    machines = [
        subprocess.Popen(
            [
                *(*LAUNCH, "--num_machines", "2", "--num_processes", "2"),
                *("--machine_rank", rank, "--main_process_ip", "127.0.0.1"),
                *("--main_process_port", port, str(ROOT / "scripts" / "train.py")),
                *("--config", "tiny.yaml", "--output_dir", "run", *FLAGS),
            ],
            cwd=folder,
            env=environment(folder / "home"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in zip(("0", "1"), folders, strict=True)
    ]
    said = [machine.communicate(timeout=300) for machine in machines]
    codes = [machine.returncode for machine in machines]
    return [(code, out, err) for code, (out, err) in zip(codes, said, strict=True)]


def test_two_machines_train_as_one(tmp_path: Path, alone: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_CONFIG)
    said = train_on_two_machines(tmp_path, tmp_path)
    assert [code for code, _, _ in said] == [0, 0], said
    check_the_same(tmp_path, alone, 2)
    once = [out.count("step 50/50  loss") for _, out, _ in said]
    assert once == [1, 0], "only the main process prints it"


def test_machines_that_do_not_share_the_run_directory_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    port = free_port()
    running = [
        start_forked(folder, *FLAGS, variables=launched(rank, 2, port))
        for rank, folder in enumerate(folders)
    ]
    assert all(process.wait(120) != 0 for process in running)
    said = (folders[1] / "err.txt").read_text()
    assert "output_dir: run of the first machine does not exist on this one" in said
    assert not (folders[1] / "run").exists()
