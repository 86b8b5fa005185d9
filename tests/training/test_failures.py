"""Failures of a run: NaN, out of memory, crashed processes, two runs in one directory."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.conftest import LAUNCH, TINY_CONFIG, start
from tests.support.forked import ForkedProcess, run_forked, script, start_forked
from tinystories_hf.core.errors import RunError
from tinystories_hf.training.failures import StepLoss, check_losses, check_weights

LONG = ("--max_steps", "100000", "--save_steps", "20", "--eval_steps", "100000")


def wait_for(folder: Path, words: str, running: subprocess.Popen[str] | ForkedProcess) -> None:
    for _ in range(1200):
        if words in (folder / "out.txt").read_text():
            return
        assert running.poll() is None, (folder / "err.txt").read_text()
        time.sleep(0.1)
    raise AssertionError(f"{words} was never printed")


def test_the_first_loss_that_is_not_finite_is_reported() -> None:
    losses = [StepLoss(step, 1e-3, torch.tensor(loss)) for step, loss in
              ((7, 2.0), (8, float("inf")), (9, float("nan")))]  # fmt: skip
    check_losses([], None)
    check_losses(losses[:1], None)
    with pytest.raises(
        RunError, match=r"the loss is inf at step 8, with a learning rate of 1\.00e-03"
    ):
        check_losses(losses, "run/checkpoint-5")
    model = torch.nn.Linear(2, 2)
    check_weights(model, 9, None)
    model.weight.data[0, 0] = torch.nan
    with pytest.raises(
        RunError, match="after step 9 and are not saved; the last valid checkpoint is"
    ):
        check_weights(model, 9, "run/checkpoint-5")


def test_a_run_that_diverges_stops_and_keeps_its_last_valid_checkpoint(tmp_path: Path) -> None:
    wild = ("--learning_rate", "1e18", "--warmup_steps", "5", "--max_grad_norm", "0")
    running = start_forked(tmp_path, *wild, "--save_steps", "1", "--eval_steps", "100")
    assert running.wait(timeout=120) == 1
    (line,) = (tmp_path / "err.txt").read_text().splitlines()
    assert "at step" in line
    assert "start a new run with a lower learning_rate" in line
    saved = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert saved
    assert f"the last valid checkpoint is run/{max(saved)}" in line
    record = (tmp_path / "run" / "run.json").read_text()
    assert '"status": "failed"' in record


def test_an_out_of_memory_error_names_the_settings_to_change(tmp_path: Path) -> None:
    large = ("--global_batch_size", "1024", "--per_device_train_batch_size", "1024",
             "--hidden_size", "128", "--num_layers", "8")  # fmt: skip
    running = start_forked(tmp_path, *large, memory=2**30)
    assert running.wait(timeout=200) == 1
    (line,) = (tmp_path / "err.txt").read_text().splitlines()
    assert "out of memory with per_device_train_batch_size 1024 and context_length 64" in line
    assert "--per_device_train_batch_size 512" in line


def test_the_second_run_in_one_directory_is_refused(tmp_path: Path) -> None:
    both = [start_forked(tmp_path, *LONG) for _ in range(2)]
    try:
        for _ in range(600):
            ended = [running for running in both if running.poll() is not None]
            if ended:
                break
            time.sleep(0.1)
        (refused,) = ended
        assert refused.poll() == 2
        said = (tmp_path / "err.txt").read_text()
        assert "another run is writing into run" in said or "already contains a run" in said
        (other,) = [running for running in both if running is not refused]
        wait_for(tmp_path, "loss", other)
    finally:
        for running in both:
            running.kill()
            running.wait()


def test_a_crashed_data_loader_worker_ends_the_run_with_one_message(tmp_path: Path) -> None:
    running = start_forked(tmp_path, *LONG, "--dataloader_num_workers", "1")
    wait_for(tmp_path, "loss", running)
    (worker,) = psutil.Process(running.pid).children()
    worker.kill()
    code = running.wait(timeout=60)
    said = (tmp_path / "err.txt").read_text()
    assert code == 1, said
    assert "error: a data-loader worker crashed" in said
    assert "Traceback" not in said


def test_if_one_of_two_processes_dies_the_other_ends(tmp_path: Path) -> None:
    running = start(tmp_path, *LONG, launcher=(*LAUNCH, "--num_processes", "2"))
    wait_for(tmp_path, "loss", running)
    first, second = psutil.Process(running.pid).children()
    began = time.monotonic()
    second.kill()
    assert running.wait(timeout=60) not in (0, None)
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - began < 60


def test_a_run_whose_launcher_is_killed_saves_a_checkpoint_and_ends(tmp_path: Path) -> None:
    launcher = (*LAUNCH, "--num_processes", "1")
    running = start(tmp_path, *LONG, "--save_steps", "100000", launcher=launcher)
    wait_for(tmp_path, "loss", running)
    (child,) = psutil.Process(running.pid).children()
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    child.wait(timeout=60)
    assert "stopped: by SIGTERM after step" in (tmp_path / "err.txt").read_text()
    assert list((tmp_path / "run").glob("checkpoint-*"))


def test_an_error_of_the_main_process_ends_the_others_without_a_traceback(
    tmp_path: Path,
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_CONFIG)
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    done = run_forked(tmp_path, script, "train.py", ["--config", "tiny.yaml"], num_processes=2)
    assert "Traceback" not in done.stderr
    # Under load a further line was printed once, in about ten runs.
    second, first = sorted(line for line in done.stderr.splitlines() if line.startswith("error"))
    assert "error: output_dir: run already contains a run" in first
    assert second == (
        "error (process 1): another process of this run has ended; see its error message"
    )
