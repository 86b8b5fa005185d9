"""The processes of a distributed run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tinystories_hf.core.errors import RunError, UserError

# What gloo and the store of PyTorch's process groups report once a peer is gone: the store while
# the group is formed, gloo afterwards.
_LOST = ("closed by peer", "reset by peer", "Connection was likely closed", "Broken pipe")


def is_main_process() -> bool:
    """Return whether this is the main process of the run, according to the launcher.

    It needs no accelerator, so it can be used before the process group exists. Callbacks and code
    that has a Trainer use `is_world_process_zero` of the Trainer or its state, which agrees.
    """
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def reporting_lost_process() -> Iterator[None]:
    """Turn the errors of a process group that ends, or cannot form, into errors with one message.

    Raises:
        RunError: another process of the run has ended.
        UserError: the port of the process group is in use.
    """
    try:
        yield
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            port = os.environ.get("MASTER_PORT", "")
            raise UserError(
                f"port {port} of the process group is in use, perhaps by another run on this"
                " machine; start with another --main_process_port"
            ) from error
        if not any(text in str(error) for text in _LOST):
            raise
        raise RunError("another process of this run has ended; see its error message") from error
