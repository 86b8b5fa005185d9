"""Locks, also on a file system that has none (ENOLCK, as NFS mounted with nolock answers)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import locked
from tinystories_hf.data.prepare import prepare
from tinystories_hf.training import run_directory
from tinystories_hf.training.run_directory import lock_run_directory

fcntl = pytest.importorskip("fcntl", reason="needs the locks of Unix")


def refuse(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture(params=["locks", "no locks"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
    kind: str = request.param
    return kind


def test_a_lock_is_held_by_one_and_leaves_nothing(file_system: str, tmp_path: Path) -> None:
    path, waited = tmp_path / ".lock", []
    first = locked(path, 0, lambda: waited.append("first"))
    second = locked(path, 0.1, lambda: waited.append("second"))
    with first as held, second as held_too:
        assert (held, held_too, waited) == (True, False, ["second"])
    assert list(tmp_path.iterdir()) == []


HOLD = """
import errno, fcntl, os, sys, time
from pathlib import Path
from tinystories_hf.core.files import locked

def refuse(*_):
    raise OSError(errno.ENOLCK, "")

if sys.argv[1] == "no locks":
    fcntl.flock = refuse
with locked(Path(sys.argv[2]), 0, print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(file_system: str, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, file_system, str(path)]
    holding = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert holding.stdout is not None
    assert holding.stdout.readline() == b"held\n"
    with locked(path, 0, lambda: None) as mine:
        assert not mine
    holding.send_signal(signal.SIGKILL)
    holding.communicate()
    with locked(path, 5, lambda: None) as mine:
        assert mine


def test_the_lock_of_another_machine_is_named_so_that_a_person_can_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(run_directory, "PATIENCE_SECONDS", 0.3)
    held = tmp_path / "run" / ".lock.held"
    held.parent.mkdir()
    held.write_text("4711\nanother-machine\n", encoding="utf-8")
    with (
        pytest.raises(UserError, match="another run is writing"),
        lock_run_directory(tmp_path / "run"),
    ):
        pass
    assert f"remove {held}" in capsys.readouterr().err
    held.unlink()
    with lock_run_directory(tmp_path / "run"):
        assert held.exists()


def test_rows_are_prepared_once_by_two_at_a_time_without_locks(
    tiny_arguments: Callable[..., Arguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse)
    arguments, paths = tiny_arguments(), []

    def work() -> None:
        paths.append(prepare(arguments.data, arguments.model.vocab_size, quiet=True).path)

    both = [threading.Thread(target=work) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert paths == [paths[0]] * 2
    assert [path.name for path in paths[0].parent.iterdir()] == [paths[0].name]
