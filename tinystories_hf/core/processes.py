"""The processes of a distributed run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tinystories_hf.core.errors import RunError


@contextmanager
def reporting_lost_process() -> Iterator[None]:
    """Turn the error of a lost peer process into a `RunError`.

    Raises:
        RunError: another process of the run has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("closed by peer", "reset by peer")):
            raise
        raise RunError("another process of this run has ended; its message says why") from error
