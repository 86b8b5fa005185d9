"""Stop a run on SIGTERM, SIGINT or SIGHUP: it finishes the current step and saves a checkpoint.

This is how runs on preemptible machines (spot instances, SLURM) normally end. This module has no
heavy imports, so that a script can handle signals from its start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from tinystories_hf.core.errors import EXIT_STOPPED, HOW_TO_RESUME

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal sends the signal to the launcher and to its processes, and the launcher forwards it:
# signals within one second count as one request.
ONE_REQUEST_SECONDS = 1.0
PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether a signal has requested a stop.

    While `deferred` is set, the first signal is only recorded in `signal`, and the training loop
    has to check it. Otherwise, and at a second signal, the process exits immediately: all results
    are on disk, and incomplete files are recognized as such. (An exception is no alternative: if it
    interrupts an import, the library stays half initialized.)
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.deferred = False
        self._first = 0.0
        self._process = os.getpid()

    def handle(self, number: int, _: FrameType | None) -> None:
        """Handle a signal; the signature that `signal.signal` requires."""
        now = time.monotonic()
        if os.getpid() != self._process:
            # Inherited by a data-loader worker: only the run stops it (SIGTERM), not a terminal.
            if number == signal.SIGTERM:
                os._exit(EXIT_STOPPED)
        elif self.signal is None:
            self.signal, self._first = signal.Signals(number).name, now
            if not self.deferred:
                self._exit(f"stopped: by {self.signal}; {HOW_TO_RESUME}")
        elif now - self._first > ONE_REQUEST_SECONDS:
            self._exit(f"stopped: by a second signal; {HOW_TO_RESUME}")

    def _exit(self, message: str) -> NoReturn:
        with suppress(Exception):  # the signal may have interrupted a write
            sys.stdout.flush()
        with suppress(OSError):  # the terminal may be closed
            os.write(2, f"{message}\n".encode())
        os._exit(EXIT_STOPPED)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handle the signals that stop a run; under a launcher, also stop if the launcher is killed."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in _signals()}
    _stop_with_launcher()
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    """Return the signals that stop a run.

    SIGHUP (the terminal was closed) is left out under `nohup`, which ignores it, and on Windows,
    which does not have it.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return list(SIGNALS)
    return [*SIGNALS, hangup]


def _stop_with_launcher() -> None:
    """Request SIGTERM from the kernel if `accelerate launch` is killed. Linux only.

    accelerate does not stop a single child process when it is killed: the child would continue
    training in the background and keep the run directory locked.
    """
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
