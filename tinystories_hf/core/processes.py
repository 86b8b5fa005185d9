"""The processes of a distributed run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tinystories_hf.core.errors import RunError


def is_main_process() -> bool:
    """Return whether this is the main process of the run, according to the launcher.

    It needs no accelerator, so it can be used before the process group exists. Callbacks and code
    that has a Trainer use `is_world_process_zero` of the Trainer or its state, which agrees.
    """
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def reporting_lost_process() -> Iterator[None]:
    """Turn the error of a lost peer process into a `RunError`.

    Raises:
        RunError: another process of the run has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error) for text in ("closed by peer", "reset by peer")):
            raise
        raise RunError("another process of this run has ended; see its error message") from error
