"""The one kind of error a user causes, and how a script reports it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_USER_ERROR = 2


class UserError(ValueError):
    """Something the user gave cannot work.

    The message names the key or the file, and the fix. Raised before any work is done, so that
    nothing on disk has changed.
    """


@contextmanager
def readable(key: str, path: Path) -> Iterator[None]:
    """Turn what the system says of a file that a setting names, such as no permission, into one."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror or error}") from None


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Turn a `UserError` into one line on stderr and exit code 2; let every other error through.

    Under a launcher all processes usually fail alike; those after the first say who they are.
    """
    try:
        yield
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        prefix = "error" if rank == "0" else f"error (process {rank})"
        print(f"{prefix}: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USER_ERROR)
