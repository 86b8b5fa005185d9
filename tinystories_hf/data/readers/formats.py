"""Detect a file's format from its name, and open it: decompressed, with its content checked."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from tinystories_hf.core.errors import UserError
from tinystories_hf.data.splits import ReportProgress, ignore_progress

if TYPE_CHECKING:
    from tinystories_hf.core.download import HubFile

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
SAVED = "saved"  # a folder of `datasets.Dataset.save_to_disk`
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
KINDS = f"{', '.join(SUFFIXES)} files, all but the last also compressed ({', '.join(CODECS)})"
READ_BLOCK_BYTES = 1 << 20
CONVERT = "convert it to UTF-8 first, for instance with iconv"
# First bytes of files that often have a wrong name, their format, and the fix.
BEGINNINGS = (
    (b"\x1f\x8b", "gzip", "add .gz to its name, or unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd", "add .zst to its name, or unpack it"),
    (b"\x04\x22\x4d\x18", "lz4", "add .lz4 to its name, or unpack it"),
    (b"BZh91AY&SY", "bz2", "add .bz2 to its name, or unpack it"),
    (b"\xfd7zXZ\0", "xz", "unpack it first"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"PAR1\x15", "Parquet", "rename it to end in .parquet"),
    (b"ARROW1\0", "Arrow", "give the folder that save_to_disk wrote"),
    (b"\xff\xfe\0\0", "UTF-32", f"{CONVERT} -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16", f"{CONVERT} -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16", f"{CONVERT} -f UTF-16 -t UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer", "download the file with git lfs pull"),
)


def endings_of(name: str) -> str:
    """Return the suffixes that determine how a file is read: `.jsonl.gz`, `.TXT`, or nothing."""
    path = PurePosixPath(name)
    last = path.suffix
    if last.lower() not in CODECS:
        return last if last.lower() in SUFFIXES else ""
    inner = PurePosixPath(path.stem).suffix
    return inner + last if inner.lower() in SUFFIXES[:-1] else ""


def format_of(name: str) -> tuple[str, str | None] | None:
    """Return the format and compression of a file name, or None if it is not supported."""
    if name.endswith("/"):
        return SAVED, None
    kind, _, packed = endings_of(name).lower()[1:].partition(".")
    return (f".{kind}", CODECS.get(f".{packed}")) if kind else None


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `datasets.Dataset.save_to_disk`."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def files_of(path: Path) -> list[Path]:
    """Return the file itself, or all files of a saved dataset."""
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


class _Counted(io.RawIOBase):
    """A binary stream that reports the number of bytes read from it."""

    def __init__(self, stream: BinaryIO, advance: ReportProgress) -> None:
        self._stream = stream
        self._advance = advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)  # type: ignore[attr-defined]
        self._advance(count)
        return int(count)


@contextmanager
def opened(path: Path | HubFile, advance: ReportProgress = ignore_progress) -> Iterator[BinaryIO]:
    """Open a file, decompressed if its name ends in the suffix of a compression format.

    Raises:
        UserError: the content does not match the name, or is damaged; also raised by later reads.
    """
    import pyarrow

    codec = (format_of(path.name) or ("", None))[1]
    with path.open("rb") as raw:
        stream = io.BufferedReader(_Counted(raw, advance), READ_BLOCK_BYTES)
        if codec is None:
            require_content(path, stream.peek(32))
            yield stream
            return
        try:
            with pyarrow.CompressedInputStream(stream, codec) as unpacked:
                stream = io.BufferedReader(unpacked, READ_BLOCK_BYTES)
                require_content(path, stream.peek(32))
                yield stream
        except OSError as error:
            if error.errno is not None:
                raise
            raise UserError(f"{path} is not a {codec} file, or is damaged: {error}") from None


def require_content(path: Path | HubFile, beginning: bytes, expected: str = "text") -> None:
    """Raise a `UserError` if the first bytes belong to a format other than the expected one."""
    for magic, found, fix in BEGINNINGS:
        if beginning.startswith(magic) and found != expected:
            raise UserError(f"{path} is {found}, not {expected}; {fix}")


@contextmanager
def naming_bad_bytes(path: Path | HubFile) -> Iterator[None]:
    """Convert a `UnicodeDecodeError` into a `UserError` with the file and the first bad byte."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason}, byte {_first_bad_byte(path)}); {CONVERT}"
        ) from None


def require_no_nul(where: str, found: bool) -> None:
    """Raise a `UserError` with the likely cause if a NUL byte was found."""
    if found:
        raise UserError(
            f"{where} contains a NUL byte and is probably UTF-16 without a byte-order mark;"
            f" {CONVERT} -f UTF-16LE -t UTF-8"
        )


def _first_bad_byte(path: Path | HubFile) -> int:
    """Return the offset of the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    with opened(path) as stream:
        while block := stream.read(READ_BLOCK_BYTES):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return read - pending + error.start
            read += len(block)
    return read - len(decoder.getstate()[0])


def is_text(path: Path | str) -> bool:
    """Return whether a file name is that of a text file, compressed or not."""
    return endings_of(Path(path).name).lower().startswith(".txt")
