"""The one kind of error a user causes, and how a script reports it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_USER_ERROR = 2


class UserError(ValueError):
    """Something the user gave cannot work.

    The message names the key or the file, and the fix. Raised before any work is done, so that
    nothing on disk has changed.
    """


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
