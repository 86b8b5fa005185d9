"""A full disk, tested with a small file system in its own mount namespace."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY_CONFIG
from tests.support.forked import run_forked, script
from tests.support.loopback_hub import LoopbackHub
from tests.support.publishing import REPO, TOKEN, published

SMALL = Path("small")
_NEW_USER_AND_MOUNTS = 0x10000000 | 0x00020000
CHILDREN = multiprocessing.get_context("fork")


def in_a_small_file_system(
    folder: Path, size: str, work: Callable[[], None], **variables: str
) -> subprocess.CompletedProcess[str]:
    """Call a function in `folder`, where `small` is a file system of `size` that it alone sees.

    Skips the test if the system does not let users mount a file system.
    """
    (folder / SMALL).mkdir()
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    done = run_forked(folder, mount_and_call, size, work, variables=variables)
    if "cannot mount" in done.stderr:
        pytest.skip("this system does not let users mount a file system")
    return done


def mount_and_call(size: str, work: Callable[[], None]) -> None:
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_USER_AND_MOUNTS):
        raise SystemExit("cannot mount: " + os.strerror(ctypes.get_errno()))
    maps = {"setgroups": "deny", "uid_map": f"0 {user} 1", "gid_map": f"0 {group} 1"}
    for name, text in maps.items():
        Path("/proc/self", name).write_text(text, encoding="ascii")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", SMALL]).returncode:
        raise SystemExit("cannot mount")
    work()


def enlarge(size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", SMALL], check=True)


def fill() -> Path:
    """Fill the small file system with one file and return its path."""
    path = SMALL / "other"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**12))
        except OSError:
            return path


def run(name: str, *flags: str) -> multiprocessing.process.BaseProcess:
    """Start a script in a process forked from this one."""
    process = CHILDREN.Process(target=script, args=(name, list(flags)))
    process.start()
    return process


def exit_code(process: multiprocessing.process.BaseProcess) -> int | None:
    process.join(120)
    return process.exitcode


def train(*flags: str) -> multiprocessing.process.BaseProcess:
    return run("train.py", "--config", "tiny.yaml", "--resume_from_checkpoint", "auto", *flags)


def publish_twice() -> None:
    shutil.copytree("copy", SMALL / "run")
    push = ("push_to_hub.py", "--model", "small/run", "--repo", REPO)
    other = fill()
    print("code", exit_code(run(*push)))
    shutil.copy(SMALL / "run/README.md", "card.md")
    other.unlink()
    print("code", exit_code(run(*push)))


def test_publishing_on_a_full_disk_keeps_the_run_and_works_once_there_is_space(
    tmp_path: Path, trained_run: Path, mine: LoopbackHub
) -> None:
    shutil.copytree(trained_run, tmp_path / "copy")
    card = (trained_run / "README.md").read_text()
    done = in_a_small_file_system(
        tmp_path,
        *("16m", publish_twice),
        HF_ENDPOINT=mine.url,
        HF_TOKEN=TOKEN,
        HF_HUB_DISABLE_XET="1",
    )
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 1", "code 0"], done.stderr
    assert "error: writing the card: no space left on the disk of small/run" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "card.md").read_text() == card
    assert b"me/tiny" in published(mine)["README.md"]


def write_in_every_way() -> None:
    import numpy
    import pyarrow
    import safetensors.torch
    import torch

    from tinystories_hf.core.errors import RunError
    from tinystories_hf.core.files import write_text
    from tinystories_hf.training.checkpoints import writing_checkpoint

    (SMALL / "checkpoint-10").mkdir()
    large = torch.arange(2**20)
    ways: dict[str, Callable[[Path], object]] = {
        "safetensors": lambda path: safetensors.torch.save_file({"a": large}, path),
        "torch": lambda path: torch.save(large, path),
        "numpy": lambda path: numpy.save(path, large.numpy()),
        "pyarrow": lambda path: pyarrow.OSFile(str(path), "wb").write(large.numpy().tobytes()),
        "text": lambda path: write_text(path, "a" * 2**23),
    }
    for name, write in ways.items():
        full = pytest.raises(RunError, match="no space left on the disk of small")
        with full, writing_checkpoint(SMALL, 0) as aside:
            write(aside / "file")
        print(name, sorted(path.name for path in SMALL.iterdir()))


def test_a_full_disk_is_recognized_for_every_library_that_writes(tmp_path: Path) -> None:
    done = in_a_small_file_system(tmp_path, "4m", write_in_every_way)
    assert done.returncode == 0, done.stderr
    ways = ("safetensors", "torch", "numpy", "pyarrow", "text")
    assert done.stdout.splitlines() == [f"{name} ['checkpoint-10']" for name in ways]


def prepare_twice() -> None:
    flags = ("--prepared_dir", "small/rows", "--max_steps", "2")
    print("code", exit_code(train(*flags)), list(SMALL.iterdir()))
    enlarge("16m")
    print("code", exit_code(train(*flags)))


def test_preparation_on_a_full_disk_leaves_nothing_and_works_once_there_is_space(
    tmp_path: Path,
) -> None:
    done = in_a_small_file_system(tmp_path, "100k", prepare_twice)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["starting", "code", "starting", "model"]
    assert lines[1] == "code 1 []", "no file was left behind"
    assert lines[-1] == "code 0", done.stderr
    (line, *_) = done.stderr.splitlines()
    assert line.startswith("error: preparing: no space left on the disk of small/rows/toy-64-")
    assert "free some space and run the same command again" in line
    assert "Traceback" not in done.stderr


LONG = (
    *("--output_dir", "small/run", "--max_steps", "4000", "--save_steps", "20"),
    *("--eval_steps", "4000", "--lr_scheduler_type", "constant"),
)


def train_three_times() -> None:
    print("code", exit_code(train(*LONG)), list(SMALL.iterdir()))
    enlarge("16m")
    running = train(*LONG)
    while running.is_alive() and not (SMALL / "run" / "checkpoint-40").exists():
        time.sleep(0.05)
    other = fill()  # it takes the space that was free when the run started
    print("code", exit_code(running))
    kept = sorted((SMALL / "run").glob("checkpoint-*"))
    print("kept", *(path.name for path in kept if (path / "checkpoint.json").exists()))
    other.unlink()
    print("code", exit_code(train(*LONG, "--max_steps", "100")))


def test_a_run_on_a_full_disk_keeps_its_checkpoints_and_resumes_once_there_is_space(
    tmp_path: Path,
) -> None:
    done = in_a_small_file_system(tmp_path, "12m", train_three_times)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "output_dir: 2 checkpoints and the model need 14 MB, but only 13 MB are free" in said[0]
    assert "a checkpoint needs 5 MB, but" in said[1]
    lines = done.stdout.splitlines()
    codes = [line for line in lines if line.startswith("code")]
    assert codes == ["code 2 []", "code 1", "code 0"], "the first run left nothing behind"
    (kept,) = (line.split()[1:] for line in lines if line.startswith("kept"))
    assert len(kept) == 2, "both are valid"
    newest = max(kept, key=lambda name: int(name.partition("-")[2]))
    assert f"run         small/run, resumed from small/run/{newest}" in lines
