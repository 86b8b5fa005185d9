"""How a run ends when it does not end well, and how a script reports it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinystories_hf.threads import let_waiting_threads_sleep

EXIT_RUN_FAILED = 1
EXIT_USER_ERROR = 2
# EX_TEMPFAIL of BSD's sysexits.h: nothing is wrong, the same command again goes on.
EXIT_STOPPED = 75
# What a machine refuses anybody: not allowed, read-only, full, no locks, broken, too many files.
REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOLCK, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
}


class UserError(ValueError):
    """Something the user gave cannot work.

    The message names the key or the file, and the fix. Raised before any work is done, so that
    nothing on disk has changed.
    """


class RunError(RuntimeError):
    """A run cannot continue: the disk or the memory is full, the loss is no number.

    Or what comes after it cannot, such as an upload. The message says what to do. What had been
    saved is whole.
    """


class Stopped(BaseException):
    """Training was asked to stop by a signal, and has; no handler of errors may take it for one."""


@contextmanager
def readable(key: str, path: object) -> Iterator[None]:
    """Turn what the system says of a file that a setting names, such as no permission, into one."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror or error}") from None


@contextmanager
def work_begun(begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Turn a `UserError` into a `RunError` once work was written: code 2 says that none was.

    Raises:
        RunError: an input cannot be used, and `begun` says that something was written before.
    """
    try:
        yield
    except UserError as error:
        if not begun():
            raise
        raise RunError(str(error)) from error


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Turn the ends that a user can do something about into one line on stderr and an exit code.

    2 for a `UserError`, 1 for a `RunError`, 75 for `Stopped`; every other error goes through, but
    for what the machine refuses: whoever foresaw that has raised a `UserError`.
    Under a launcher all processes usually fail alike; those after the first say who they are.
    Every script runs inside it, so it also makes the output safe to print to, and lets threads
    that wait sleep.
    """
    from tinystories_hf.console import keep_streams

    let_waiting_threads_sleep()
    keep_streams()
    try:
        _check_home()
        yield
    except UserError as error:
        _end("error", error, EXIT_USER_ERROR)
    except RunError as error:
        _end("error", error, EXIT_RUN_FAILED)
    except Stopped as end:
        _end("stopped", end, EXIT_STOPPED)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        # A library's lock; those of this package work without.
        fix = "; put HF_HOME on a file system that has locks" if error.errno == errno.ENOLCK else ""
        reason = f"{error.filename or 'the system'}: {error.strerror}{fix}"
        _end("error", reason, EXIT_RUN_FAILED)


def _check_home() -> None:
    """Raise a `UserError` where caches have no place: libraries would make a folder named `~`."""
    named = {"HF_HOME", "XDG_CACHE_HOME"} & os.environ.keys()
    try:
        Path("~").expanduser()
    except RuntimeError:
        if not named:
            raise UserError(
                "this user has no home directory: the user id is not in the password database and"
                " HOME is not set; set HOME to a folder that can be written"
            ) from None


def _end(what: str, reason: BaseException | str, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    prefix = what if rank == "0" else f"{what} (process {rank})"
    if str(reason):
        print(f"{prefix}: {reason}", file=sys.stderr, flush=True)
    sys.exit(code)
