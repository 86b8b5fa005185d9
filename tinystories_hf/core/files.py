"""Atomic writes, locks and digests: a reader never sees a partly written file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from tinystories_hf.core.errors import RunError, UserError, reporting_unreadable

_BLOCK = 1 << 20
NO_ROOM_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, by one rename: a reader sees the old file or the new one."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        sync(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically, by one rename."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything in it to disk, with the permissions that the umask gives.

    safetensors creates files that only their owner can read.
    """
    new = folder / ".new"
    new.touch()
    mode = new.stat().st_mode
    new.unlink()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_mode != mode:
            path.chmod(stat.S_IMODE(mode))
        sync(path)
    sync(folder)


def check_writable(folder: Path, setting: str, fix: str = "choose another folder") -> None:
    """Find out before any work whether files can be made in a folder, or the folder itself.

    Raises:
        UserError: they cannot; it names the `setting` that chose the place.
    """
    places = (folder.absolute(), *folder.absolute().parents)
    try:
        tempfile.TemporaryFile(dir=next(path for path in places if path.exists())).close()
    except OSError as error:
        reason = error.strerror
        raise UserError(f"{setting}: cannot write in {folder}: {reason}; {fix}") from None


def check_readable(folder: Path, setting: str) -> None:
    """Raise a `UserError` if a file of a model folder (JSON, weights, text) cannot be read."""
    with reporting_unreadable(setting, folder):
        try:
            files = list(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            files = []
    for path in files:
        if path.suffix in (".json", ".safetensors", ".txt", ".md"):
            with reporting_unreadable(setting, path):
                path.open("rb").close()


@contextlib.contextmanager
def locked(path: Path, patience: float, waiting: Callable[[], None]) -> Iterator[bool]:
    """Hold a file lock, which is released when the process ends for any reason.

    Yields False, without the lock, if another process still holds it after `patience` seconds
    (below 0: waits indefinitely). `waiting` is called once if the lock is not free.

    On a file system without locks (NFS mounted with nolock) the file `PATH.held` is the lock. A
    stale one of this machine is taken over; one of another machine cannot be detected as stale.
    """
    lock: BaseFileLock = FileLock(path)
    hint = ""
    try:
        free = _acquired(lock, 0)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}.held"))
        hint = f"if no such process runs on any machine, remove {lock.lock_file}"
        free = _acquired(lock, 0)
    if not free:
        waiting()
        if hint:
            print(hint, file=sys.stderr, flush=True)
        if not _acquired(lock, patience):
            yield False
            return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()


def _acquired(lock: BaseFileLock, patience: float) -> bool:
    try:
        lock.acquire(timeout=patience, poll_interval=0.2)
    except Timeout:
        return False
    return True


@contextlib.contextmanager
def appearing(folder: Path, setting: str, what: str) -> Iterator[Path | None]:
    """Yield a working folder that is synced and renamed to `folder` when the block succeeds.

    One process works at a time: where another process finished first, None is yielded and `folder`
    exists (`what` describes the work in the message printed while waiting). An incomplete folder
    never gets the name; what a killed process left is removed by the next one.

    Raises:
        UserError: the folder cannot be written; the message names the `setting` that chose it.
    """
    root = folder.parent
    created = [path for path in (root, *root.parents) if not path.exists()]
    check_writable(root, setting)
    root.mkdir(parents=True, exist_ok=True)
    lock, work = root / f".{folder.name}.lock", root / f".{folder.name}.unfinished"
    try:
        with locked(lock, -1, lambda: _say_waiting(what)):
            if folder.exists():
                yield None
                return
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                yield work
                sync_tree(work)
                work.rename(folder)
                sync(root)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    finally:
        if not folder.exists():
            remove_created(created)


def _say_waiting(what: str) -> None:
    print(f"another process is {what} the same data; waiting for it", file=sys.stderr, flush=True)


def remove_created(created: list[Path]) -> None:
    """Remove folders that were created and stayed empty, the innermost first."""
    with contextlib.suppress(OSError):  # a folder that is in use by now is kept
        for path in created:
            path.rmdir()


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that the disk or the quota is full.

    safetensors, PyTorch and pyarrow wrap the system's message in errors of their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(os.strerror(code) in str(seen) for code in (errno.ENOSPC, errno.EDQUOT)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system of a path, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def reporting_full_disk(folder: Path, what: str) -> Iterator[None]:
    """Turn the errors of a full disk into a `RunError`.

    Raises:
        RunError: the disk is full.
    """
    try:
        yield
    except (RunError, UserError):
        raise
    except Exception as error:
        # PyTorch only reports that its stream failed, numpy how many items it could not write.
        failed = isinstance(error, (RuntimeError, OSError))
        no_room = failed and free_bytes(folder) < NO_ROOM_BYTES
        if not is_disk_full(error) and not no_room:
            raise
        raise RunError(
            f"{what}: no space left on the disk of {folder} ({free_bytes(folder) / 1e6:,.0f} MB"
            " free); nothing saved before is lost: free some space and run the same command again"
        ) from error
