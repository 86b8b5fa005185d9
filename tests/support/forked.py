"""Runs in processes that have the training stack already, forked from one that imported it.

The import takes five seconds of a processor, a tiny run one. What such a run cannot tell is what
happens before the script's first line, in the launcher, and at the interpreter's exit: those tests
start the true command (`train_tiny`, `run_script` of conftest.py).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, TINY_CONFIG, environment

FORKS = multiprocessing.get_context("forkserver")


def begin_server() -> None:
    """Start the process that the others are forked from, where it does not run yet.

    The libraries read the caches' place and the Hub's address when they are imported: for all runs
    these are an empty folder and no Hub.
    """
    FORKS.set_forkserver_preload(["tests.support.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        clean = environment(Path(tempfile.gettempdir()) / "no-home")
        for name in os.environ.keys() - clean.keys():
            patch.delenv(name)
        for name, value in clean.items():
            patch.setenv(name, value)
        forkserver.ensure_running()


def run_forked(
    folder: Path, work: Callable[..., object], *arguments: object, num_processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """Call a function in `folder`, in so many processes; return the first exit code that is not 0.

    What they say is returned one after the other, in the order of their ranks.
    """
    begin_server()
    port = free_port()
    with tempfile.TemporaryDirectory() as said:
        files = [[Path(said) / f"{rank}{name}" for rank in range(num_processes)] for name in "oe"]
        ranks = [
            FORKS.Process(
                target=_call,
                args=(folder, launched(rank, num_processes, port), (out, err), work, arguments),
            )
            for rank, (out, err) in enumerate(zip(*files, strict=True))
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=300)
            if process.is_alive():
                process.kill()
                process.join()
        out, err = ("".join(path.read_text() for path in paths) for paths in files)
    codes = [process.exitcode for process in ranks]
    return subprocess.CompletedProcess(work.__name__, next(filter(None, codes), 0), out, err)


def train_forked(
    folder: Path, *flags: str, num_processes: int = 1, run: str = "run"
) -> subprocess.CompletedProcess[str]:
    """Train the tiny model in `folder`, as `train_tiny` does, on so many processes."""
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    prepared = ("--prepared_dir", str(folder / "home" / "tinystories_hf"))
    words = ["--config", "tiny.yaml", "--output_dir", run, *prepared, *flags]
    done = run_forked(folder, script, "train.py", words, num_processes=num_processes)
    assert done.returncode == 0, done.stderr
    return done


def script(name: str, flags: list[str]) -> None:
    """Run a script of the project, with flags, in this process."""
    sys.argv = [str(ROOT / "scripts" / name), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


def launched(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what `accelerate launch` with configs/accelerate/cpu.yaml tells a process."""
    if processes == 1:
        return {}
    return {
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_MIXED_PRECISION": "no",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def leave_memory(size: int) -> None:
    """Let this process, which is a forked one, have so many bytes more than it has, and no more."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + size, -1))


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _call(
    folder: Path,
    extra: dict[str, str],
    said: tuple[Path, Path],
    work: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    os.chdir(folder)
    os.environ.update(extra)
    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    work(*arguments)
