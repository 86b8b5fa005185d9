"""Output streams that survive closed pipes, and command lines that can be copied."""

from __future__ import annotations

import errno
import functools
import io
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tinystories_hf.core.errors import RunError
from tinystories_hf.core.processes import is_main_process
from tinystories_hf.core.shipped import SCRIPT_OF, is_checkout, shipped

# A closed pipe (EINVAL on Windows), and a closed terminal.
NO_READER = {errno.EPIPE, errno.EIO, *([errno.EINVAL] if os.name == "nt" else [])}


def make_streams_safe() -> None:
    """Keep stdout and stderr usable when a pipe or terminal closes; called by scripts only.

    Characters that the encoding of the output lacks are replaced. Output is dropped once its pipe
    or terminal is closed. A full disk is a `RunError` for standard output; for standard error the
    messages are dropped.
    """
    # A stream that was replaced, for instance by pytest, is not touched.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout, 1, "replace")
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr, 2, "backslashreplace")


def _lasting(stream: Any, number: int, errors: str) -> Any:
    if stream is None:  # closed from the start: the next opened file would get its descriptor
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
        """Write; after a failure the descriptor is redirected to the null device, for C++ too."""
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


@functools.cache
def print_note_once(note: str) -> None:
    """Print a note to standard error, once, on the main process."""
    if is_main_process():
        print(f"note: {note}", file=sys.stderr, flush=True)


def command_line(name: str, *words: str) -> str:
    """Return a command line that runs a command of this package from the current folder.

    It is a script in a checkout, else `tinystories`. Paths below the current folder are relative.
    Paths in `words` are used as they are.
    """
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    if not is_checkout():
        return join([*_program("tinystories"), name, *words])
    script = shipped("scripts") / SCRIPT_OF[name]
    return join([*_program("python"), _from_here(script), *words])


def _program(name: str) -> list[str]:
    """Return `name` if the shell finds that of this environment, else its path."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and Path(found).absolute() == own.absolute():
        return [name]
    if name == "python":
        return [_from_here(Path(sys.executable))]
    return [_from_here(own)] if own.exists() else ["python", "-m", "tinystories_hf"]


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
