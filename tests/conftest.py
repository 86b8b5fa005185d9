"""What several tests share: a tiny model, a tiny run, and a way to run the scripts."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock
from huggingface_hub import constants

from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import Account
from tests.support.publishing import TOKEN
from tinystories_hf.config.command_line import Arguments, parse_arguments

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# Nothing listens there: a test that reaches for the Hub by mistake fails at once.
NO_HUB = "http://127.0.0.1:9"

LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch"),
    *("--config_file", str(ROOT / "configs/accelerate/cpu.yaml")),
    *("--num_cpu_threads_per_process", "1"),
)

torch.set_num_threads(1)

TINY_CONFIG = """\
hidden_size: 32
num_layers: 2
num_heads: 4
vocab_size: 320
max_position_embeddings: 64
window_size: 16
dataset: toy
toy_stories: 300
tokenizer: train
context_length: 64
output_dir: run
global_batch_size: 8
max_steps: 20
learning_rate: 1e-2
logging_steps: 1
eval_steps: 10
save_steps: 10
max_eval_rows: 8
bf16: false
sample_prompts: [Once upon a time]
"""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Keep bytes out of the names of tests: those of gzip hold the time at which they were made.

    Processes of pytest-xdist that began in different seconds would collect different tests.
    """
    return argname if isinstance(val, bytes) else None


def pytest_collection_finish() -> None:
    """Leave what is imported out of the garbage collections of accelerate: 0.2 s in each run."""
    gc.freeze()


LAUNCHING_FIXTURES = {
    *("run_script", "launch_script", "run_code", "launch_code", "trained_run", "evaluated"),
    *("round_trip", "exported_run"),
}
LAUNCHING_CALLS = {
    *("subprocess", "train_tiny", "train_forked", "run_forked", "start_forked", "start", "soak"),
    *("load_stock", "evaluate", "peak_memory"),
}
LAUNCHING_FILES = {
    *("test_sanitizers.py", "test_disk_full.py", "test_scale_out.py", "test_sharding.py"),
    *("test_signals.py", "test_page_in_browser.py", "test_failures.py", "test_onnx_export.py"),
    *("test_library.py", "test_installed.py"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start processes of their own, which `make test-fast` leaves out."""
    for item in items:
        calls = set(getattr(item, "function", environment).__code__.co_names)
        fixtures = set(getattr(item, "fixturenames", ()))
        launching = calls & LAUNCHING_CALLS or fixtures & LAUNCHING_FIXTURES
        if launching or item.path.name in LAUNCHING_FILES:
            item.add_marker("launches")


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Return a clean environment for a subprocess: own caches, no Hub, one thread."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "ACCELERATE_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        kept.pop(name, None)
    # One thread: the models are tiny, and two test processes that fight for two cores take ten
    # times as long.
    alone = {"HF_HOME": str(home), "HF_ENDPOINT": NO_HUB, "OMP_NUM_THREADS": "1"}
    return {**kept, **alone, **extra}


def seconds_of_children() -> float:
    """Return the processor time of all processes that this one has started and that have ended.

    What a command takes on a machine of its own: tests that run beside others share two cores, and
    a wall clock there tells of the others.
    """
    return psutil.Process().cpu_times().children_user + psutil.Process().cpu_times().children_system


@pytest.fixture
def shared() -> Path:
    """Return the folder of real text and the real tokenizer, or skip."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real stories and the real tokenizer), which is not there")
    return SHARED


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    """Return a YAML file of a model that trains in a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY_CONFIG)
    return path


@pytest.fixture
def tiny_arguments(tiny_config: Path, tmp_path: Path) -> Callable[..., Arguments]:
    """Return a function that parses the tiny configuration with flags on top."""

    def parse(*flags: str) -> Arguments:
        places = [
            "--prepared_dir",
            str(tmp_path / "prepared"),
            "--output_dir",
            str(tmp_path / "run"),
        ]
        return parse_arguments(["--config", str(tiny_config), *places, *flags])

    return parse


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a script of the project from an empty working directory.

    In a forked process that has the stack already; see tests/support/forked.py.
    """
    from tests.support.forked import run_forked, script

    work = tmp_path / "work"
    work.mkdir(exist_ok=True)

    def run(name: str, *flags: str, **extra: str) -> subprocess.CompletedProcess[str]:
        variables = {"HF_HOME": str(tmp_path / "home"), **extra}
        return run_forked(work, script, name, list(flags), variables=variables)

    return run


@pytest.fixture
def launch_script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function like that of `run_script`, which starts the true command."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)

    def run(
        script: str, *arguments: str, launcher: tuple[str, ...] = (), **extra: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *launcher, str(ROOT / "scripts" / script), *arguments]
        return subprocess.run(
            command,
            cwd=work,
            env=environment(tmp_path / "home", **extra),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture
def run_code(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs Python code in a forked process, with its own caches."""
    from tests.support.forked import code, run_forked

    def run(source: str, *arguments: str, **extra: str) -> tuple[int, str, str]:
        variables = {"HF_HOME": str(tmp_path / "home"), **extra}
        done = run_forked(tmp_path, code, source, list(arguments), variables=variables)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def launch_code(tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Return a function like that of `run_code`, which starts an interpreter."""

    def run(code: str, *arguments: str, **extra: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env=environment(tmp_path / "home", **extra),
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def train_tiny(
    folder: Path, *flags: str, num_processes: int | None = None, run: str = "run", **extra: str
) -> subprocess.CompletedProcess[str]:
    """Train the tiny model in `folder`; through the launcher where `num_processes` is given.

    `extra` goes into the environment.
    """
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    launcher = (*LAUNCH, "--num_processes", str(num_processes)) if num_processes else ()
    done = subprocess.run(
        [
            *(launcher or (sys.executable,)),
            *(str(ROOT / "scripts" / "train.py"), "--config", "tiny.yaml", *flags),
            *("--output_dir", run),
        ],
        cwd=folder,
        env=environment(folder / "home", **extra),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def start(
    folder: Path, *flags: str, launcher: tuple[str, ...] = (sys.executable,), limit: str = ""
) -> subprocess.Popen[str]:
    """Start a run of the tiny model in a process group of its own.

    What it says goes below what is in out.txt and err.txt; `limit` is bash that comes before it.
    """
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    script = [*launcher, str(ROOT / "scripts/train.py"), "--config", "tiny.yaml", *flags]
    words = ["bash", "-c", f'{limit} exec "$@"', "bash", *script] if limit else script
    with (folder / "out.txt").open("a") as out, (folder / "err.txt").open("a") as err:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=environment(folder / "home"),
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        )


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that one process of pytest-xdist fills for all of them, to be read only."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            making = Path(tempfile.mkdtemp(dir=base))
            make(making)
            making.rename(folder)
    return folder


TIMED = ("tokens_per_second", "seconds_per_step", "runtime", "per_second", "preparation_time")


def untimed(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of a Trainer's log without what the clock decides."""
    return [
        {key: value for key, value in entry.items() if not key.endswith(TIMED)} for entry in log
    ]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a tiny model, trained through the real command line."""

    def make(folder: Path) -> None:
        done = train_tiny(folder, num_processes=1)
        (folder / "stdout.txt").write_text(done.stdout)
        (folder / "stderr.txt").write_text(done.stderr)

    return made_once(tmp_path_factory, "trained", make) / "run"


@pytest.fixture(scope="session")
def exported_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the trained run with its ONNX files."""
    pytest.importorskip("onnxscript", reason="needs the packages of the extra `onnx`")
    from tinystories_hf.web.onnx_export import export_onnx

    def make(folder: Path) -> None:
        export_onnx(Path(shutil.copytree(trained_run, folder / "run")))

    return made_once(tmp_path_factory, "exported", make) / "run"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """Serve an empty Hub on loopback."""
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def mine(hub: LoopbackHub) -> LoopbackHub:
    """Return a Hub on which TOKEN may write as `me`."""
    hub.accounts[TOKEN] = Account("me", organizations=("us",))
    return hub


@pytest.fixture
def client(mine: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Point this process at the Hub; waits take no time, and are listed."""
    waits: list[float] = []
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, mine.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", mine.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture
def run_dir(trained_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run, to be published."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))
