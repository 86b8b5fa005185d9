"""Standard output and standard error of a script, which never ends because of what it prints."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

from tinystories_hf.errors import RunError

# A pipe whose reader has closed it (EINVAL on Windows), and a terminal that was closed.
NO_READER = {errno.EPIPE, errno.EIO, *([errno.EINVAL] if os.name == "nt" else [])}


def keep_streams() -> None:
    """Make the streams of this process last: called by scripts, never on import.

    Characters that the encoding of the output lacks are replaced. Output is dropped once its pipe
    or terminal is closed. A full disk is a `RunError` for standard output; for standard error the
    messages are dropped.
    """
    # A stream that somebody else has put there, such as pytest, is left alone.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout, 1, "replace")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr, 2, "backslashreplace")


def _lasting(stream: Any, number: int, errors: str) -> Any:
    if stream is None:  # closed from the start: the next file that is opened would get its number
        _discard(number)
        return open(number, "w", encoding="utf-8", closefd=False)
    stream.flush()
    if not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):
        stream.reconfigure(errors=errors)  # the console of Windows
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_LastingFile(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=stream.line_buffering or stream.write_through,
    )


class _LastingFile(io.FileIO):
    def write(self, data: Any) -> int:
        """Write; once that fails, this descriptor leads nowhere, for C++ too."""
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            _discard(self.fileno())
            if error.errno not in NO_READER and self.fileno() == 1:
                raise RunError(f"the output cannot be written: {error.strerror}") from None
            return memoryview(data).nbytes


def _discard(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
    os.set_inheritable(number, True)
