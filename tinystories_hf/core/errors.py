"""The errors that a script reports in one line, and their exit codes."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_RUN_FAILED = 1
EXIT_USER_ERROR = 2
# EX_TEMPFAIL of BSD's sysexits.h: nothing is wrong, and the same command resumes.
EXIT_STOPPED = 75
# Errors of the machine rather than the program: no permission, read-only, full, no locks, I/O
# error, too many open files.
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
    """A run cannot continue: the disk or the memory is full, or the loss is NaN or infinite.

    Or a later stage failed, such as an upload. The message says what to do. Everything saved
    before is complete.
    """


class Stopped(BaseException):
    """Training was stopped by a signal. Not an `Exception`, so that no error handler catches it."""


@contextmanager
def reporting_unreadable(key: str, path: object) -> Iterator[None]:
    """Turn an `OSError` about a file that a setting names into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror or error}") from None


@contextmanager
def after_work_began(begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Turn a `UserError` into a `RunError` once something was written.

    Exit code 2 means that nothing was written.

    Raises:
        RunError: an input cannot be used, and `begun` returns that something was written before.
    """
    try:
        yield
    except UserError as error:
        if not begun():
            raise
        raise RunError(str(error)) from error


HOW_TO_RESUME = "the same command with --resume_from_checkpoint auto resumes it"
