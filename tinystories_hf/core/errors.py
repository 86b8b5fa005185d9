"""How a run ends when it does not end well, and how a script reports it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
def reporting_unreadable(key: str, path: object) -> Iterator[None]:
    """Turn what the system says of a file that a setting names, such as no permission, into one."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror or error}") from None


@contextmanager
def after_work_began(begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
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


HOW_TO_RESUME = "the same command with --resume_from_checkpoint auto goes on"
