"""How a script runs: its output streams, its waiting threads, its errors and exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinystories_hf.core.errors import (
    EXIT_RUN_FAILED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    REFUSED,
    RunError,
    Stopped,
    UserError,
)
from tinystories_hf.core.processes import is_main_process
from tinystories_hf.core.shipped import as_installed
from tinystories_hf.core.threads import let_waiting_threads_sleep


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Report the errors that a user can act on in one line on stderr, with an exit code.

    The code is 2 for a `UserError`, 1 for a `RunError` or an error of the machine (`REFUSED`), and
    75 for `Stopped`. Any other exception is raised as it is. Under a launcher all processes usually
    fail alike; those after the main process print their rank. Every script runs inside this
    context, so it also makes the output streams safe and lets waiting threads sleep.
    """
    from tinystories_hf.core.console import make_streams_safe

    let_waiting_threads_sleep()
    make_streams_safe()
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
        # The lock of another library; this package's own locks work without this support.
        fix = "; put HF_HOME on a file system that has locks" if error.errno == errno.ENOLCK else ""
        reason = f"{error.filename or 'the system'}: {error.strerror}{fix}"
        _end("error", reason, EXIT_RUN_FAILED)


def _check_home() -> None:
    """Raise a `UserError` without a home directory: libraries would create a folder named `~`."""
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
    prefix = what if is_main_process() else f"{what} (process {os.environ['RANK']})"
    if str(reason):
        print(f"{prefix}: {as_installed(str(reason))}", file=sys.stderr, flush=True)
    sys.exit(code)
