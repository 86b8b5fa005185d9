"""Ending on request: SIGTERM, SIGINT and SIGHUP end a run after its step, with all of it saved.

It is how a run on a machine that is taken away (spot, SLURM) normally ends. Imports nothing heavy:
a script listens from its first moment on.
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
# A terminal signals the launcher and its processes alike, and the launcher passes it on: what comes
# within a second is one request.
ONE_REQUEST_SECONDS = 1.0
PR_SET_PDEATHSIG = 1


class StopRequest:
    """What the signals have asked for.

    While `deferred`, the first signal is only noted, and whoever deferred it has to look. Else, and
    at the second, the process ends where it is: all that is worth keeping is on disk, and what is
    half written there is known as such. (An exception would do, but not everywhere: an import that
    it breaks leaves a library behind that is half there.)
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.deferred = False
        self._first = 0.0
        self._process = os.getpid()

    def handle(self, number: int, _: FrameType | None) -> None:
        """Take a signal; the signature is that of `signal.signal`."""
        now = time.monotonic()
        if os.getpid() != self._process:
            # A DataLoader's process inherits this; the run ends it, and a terminal does not.
            if number == signal.SIGTERM:
                os._exit(EXIT_STOPPED)
        elif self.signal is None:
            self.signal, self._first = signal.Signals(number).name, now
            if not self.deferred:
                self._leave(f"stopped: by {self.signal}; {HOW_TO_RESUME}")
        elif now - self._first > ONE_REQUEST_SECONDS:
            self._leave(f"stopped: by a second signal; {HOW_TO_RESUME}")

    def _leave(self, last_words: str) -> NoReturn:
        with suppress(Exception):  # a stream may be in the middle of a line
            sys.stdout.flush()
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"{last_words}\n".encode())
        os._exit(EXIT_STOPPED)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Listen to the signals that end a run; below a launcher, also to its death."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in _signals()}
    end_with_the_launcher()
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    """Return the signals that end a run: SIGHUP, of a terminal that closes, unless it is ignored.

    `nohup` starts a program with SIGHUP ignored; Windows has no such signal.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return list(SIGNALS)
    return [*SIGNALS, hangup]


def end_with_the_launcher() -> None:
    """Have the system send SIGTERM when `accelerate launch` dies without passing a signal on.

    It starts a single process as a child that it does not end with itself: the child would train
    on, unseen, and hold the run directory. Linux only.
    """
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
