"""Run scripts in processes forked from one that has already imported the training stack.

The imports take five seconds of CPU time, a tiny run takes one. A forked run does not cover what
happens before the first line of the script, in the launcher, and at the exit of the interpreter:
those tests start the real command (`train_tiny`, `launch_script` of conftest.py).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
from huggingface_hub import HfApi

from tests.conftest import NO_HUB, ROOT, TINY_CONFIG, environment

FORKS = multiprocessing.get_context("forkserver")
NO_HOME = Path(tempfile.gettempdir()) / "no-home-of-forked-tests"


def begin_server() -> None:
    """Start the process that the others are forked from, where it does not run yet.

    The libraries read the caches' place and the Hub's address when they are imported: there these
    are a folder that does not exist and no Hub, and `redirect` sets others.
    """
    FORKS.set_forkserver_preload(["tests.support.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        clean = environment(NO_HOME)
        for name in os.environ.keys() - clean.keys():
            patch.delenv(name)
        for name, value in clean.items():
            patch.setenv(name, value)
        forkserver.ensure_running()


class ForkedProcess:
    """A function at work in a process of its own, with the methods of a Popen."""

    def __init__(
        self,
        folder: Path,
        said: tuple[Path, Path],
        work: Callable[..., object],
        *arguments: object,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Call a function in `folder`, in a session of its own; its output is added to `said`.

        `variables` is added to the environment; of those that libraries read when they are
        imported, `HF_HOME` (by default a folder beside `folder`) and `HF_ENDPOINT` take effect.
        """
        begin_server()
        own = {"HF_HOME": str(folder.with_name(f"{folder.name}-home")), **(variables or {})}
        for path in said:
            path.touch()
        self.process = FORKS.Process(target=_call, args=(folder, own, said, work, arguments))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()


def run_forked(
    folder: Path,
    work: Callable[..., object],
    *arguments: object,
    num_processes: int = 1,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Call a function in `folder`, in so many processes; return the first exit code that is not 0.

    Their output is returned one after the other, in the order of their ranks.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as said:
        streams = [
            (Path(said) / f"{rank}o", Path(said) / f"{rank}e") for rank in range(num_processes)
        ]
        ranks = [
            ForkedProcess(
                folder,
                streams[rank],
                work,
                *arguments,
                variables={**launched(rank, num_processes, port), **(variables or {})},
            )
            for rank in range(num_processes)
        ]
        for rank in ranks:
            try:
                rank.wait(300)
            except subprocess.TimeoutExpired:
                rank.kill()
        codes = [rank.wait() for rank in ranks]
        out, err = (
            "".join(path.read_text() for path in paths) for paths in zip(*streams, strict=True)
        )
    assert not NO_HOME.exists(), f"a test used {NO_HOME} as its cache; remove it"
    return subprocess.CompletedProcess(work.__name__, next(filter(None, codes), 0), out, err)


def start_forked(
    folder: Path,
    *flags: str,
    memory: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> ForkedProcess:
    """Start a run of the tiny model; what it prints is added to out.txt and err.txt.

    `memory` is how many bytes it may take beyond those that it has.
    """
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    words = ["--config", "tiny.yaml", *flags]
    return ForkedProcess(
        folder,
        (folder / "out.txt", folder / "err.txt"),
        script,
        *("train.py", words, memory),
        variables={"HF_HOME": str(folder / "home"), **(variables or {})},
    )


def train_forked(
    folder: Path, *flags: str, num_processes: int = 1, run: str = "run", **extra: str
) -> subprocess.CompletedProcess[str]:
    """Train the tiny model in `folder`, as `train_tiny` does, on so many processes."""
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    done = run_forked(
        folder,
        script,
        "train.py",
        ["--config", "tiny.yaml", "--output_dir", run, *flags],
        num_processes=num_processes,
        variables={"HF_HOME": str(folder / "home"), **extra},
    )
    assert done.returncode == 0, done.stderr
    return done


def script(name: str, flags: list[str], memory: int | None = None) -> None:
    """Run a script of the project, with flags, in this process."""
    if memory is not None:
        leave_memory(memory)
    sys.argv = [str(ROOT / "scripts" / name), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


def code(source: str, arguments: list[str]) -> None:
    """Run Python code, with arguments, in this process."""
    sys.argv = ["-c", *arguments]
    exec(compile(source, "<string>", "exec"), {"__name__": "__main__"})


def redirect(home: str, endpoint: str) -> None:
    """Replace the home and the Hub's address that the libraries of this process have read.

    They keep them in module variables, and huggingface_hub in the clients that modules share.
    """
    changes = {str(NO_HOME): home, NO_HUB: endpoint}

    def changed(value: object) -> object:
        text = str(value)
        for old, new in changes.items():
            text = text.replace(old, new)
        return type(value)(text)  # type: ignore[call-arg]

    others = [found for name, found in sys.modules.items() if not name.startswith("torch")]
    for module in others:
        for name, value in list(vars(module).items()):
            if isinstance(value, (str, Path)):
                if any(old in str(value) for old in changes):
                    setattr(module, name, changed(value))
            elif isinstance(value, HfApi):
                value.endpoint = endpoint


def launched(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return the variables that `accelerate launch` with configs/accelerate/cpu.yaml sets."""
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
    os.setsid()
    os.chdir(folder)
    os.environ.update(extra)
    redirect(os.environ["HF_HOME"], os.environ["HF_ENDPOINT"])
    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    work(*arguments)
