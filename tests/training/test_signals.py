from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.soak import Kill, fork, launch, soak

# Prints "ready", then "noted" at the first signal if signals are deferred.
LISTEN = """
import sys, time
from tinystories_hf.training.signals import stop_on_signals

with stop_on_signals() as stop:
    stop.deferred = sys.argv[1] == "deferred"
    print("ready", flush=True)
    while stop.signal is None:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(30)
"""


def listen(mode: str, *launcher: str) -> subprocess.Popen[str]:
    command = [*launcher, sys.executable, "-c", LISTEN, mode]
    listening = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert listening.stdout is not None
    assert listening.stdout.readline() == "ready\n"
    return listening


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_outside_of_training_a_signal_exits_immediately(number: signal.Signals) -> None:
    listening = listen("at once")
    listening.send_signal(number)
    _, said = listening.communicate(timeout=10)
    assert listening.returncode == 75
    assert said == f"stopped: by {number.name}; the same command with" \
                   " --resume_from_checkpoint auto resumes it\n"  # fmt: skip


def test_in_training_the_first_signal_is_recorded_its_echo_ignored_and_a_second_one_exits() -> None:
    listening = listen("deferred")
    listening.send_signal(signal.SIGINT)
    assert listening.stdout is not None
    assert listening.stdout.readline() == "noted\n"
    listening.send_signal(signal.SIGTERM)  # forwarded by the launcher
    with pytest.raises(subprocess.TimeoutExpired):
        listening.wait(timeout=1.2)
    listening.send_signal(signal.SIGTERM)
    _, said = listening.communicate(timeout=10)
    assert listening.returncode == 75
    assert "by a second signal" in said


def test_a_closed_terminal_ends_the_program_although_its_message_cannot_be_written() -> None:
    listening = listen("at once")
    assert listening.stderr is not None
    listening.stderr.close()
    listening.send_signal(signal.SIGHUP)
    assert listening.wait(timeout=10) == 75


@pytest.mark.skipif(shutil.which("nohup") is None, reason="needs nohup")
def test_nohup_is_respected() -> None:
    listening = listen("at once", "nohup")
    listening.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        listening.wait(timeout=0.5)
    listening.send_signal(signal.SIGTERM)
    _, said = listening.communicate(timeout=10)
    assert "stopped: by SIGTERM" in said


# In the order in which they can occur in a run.
KILLS = {
    "one process": (
        1,
        [
            Kill("preparing", 0.1),
            Kill("training", 0.01, 4, signal.SIGTERM),
            Kill("saving", 0.04),
            Kill("finishing", 0.3),
        ],
    ),
    "two processes": (2, [Kill("saving", 0.04, signal=signal.SIGTERM)]),
}


@pytest.mark.parametrize("case", KILLS)
def test_a_run_that_is_killed_repeatedly_has_the_same_result(tmp_path: Path, case: str) -> None:
    processes, kills = KILLS[case]
    met = soak(tmp_path, kills, 60, processes, fork if processes == 1 else launch)
    assert met.total() == len(kills)
