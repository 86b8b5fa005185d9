"""What kind of file a name says it is, and opening one: checked, counted and unpacked."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from tinystories_hf.core.errors import UserError
from tinystories_hf.data.splits import ReportProgress, ignore

if TYPE_CHECKING:
    from tinystories_hf.data.download import HubFile

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")
SAVED = "saved"  # a folder of `datasets.Dataset.save_to_disk`
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
KINDS = f"{', '.join(SUFFIXES)} files, all but the last also compressed ({', '.join(CODECS)})"
READ_BLOCK_BYTES = 1 << 20
CONVERT = "convert it to UTF-8 first, for instance with iconv"
# How files begin that are often taken for others, what they are, and what to do about them.
BEGINNINGS = (
    (b"\x1f\x8b", "gzip", "give its name the ending .gz, or unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd", "give its name the ending .zst, or unpack it"),
    (b"\x04\x22\x4d\x18", "lz4", "give its name the ending .lz4, or unpack it"),
    (b"BZh91AY&SY", "bz2", "give its name the ending .bz2, or unpack it"),
    (b"\xfd7zXZ\0", "xz", "unpack it first"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"PAR1\x15", "Parquet", "give its name the ending .parquet"),
    (b"ARROW1\0", "Arrow", "give the folder that save_to_disk has made"),
    (b"\xff\xfe\0\0", "UTF-32", f"{CONVERT} -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16", f"{CONVERT} -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16", f"{CONVERT} -f UTF-16 -t UTF-8"),
    (b"version https://git-lfs", "the pointer of Git LFS to a file", "get it with git lfs pull"),
)


def endings_of(name: str) -> str:
    """Return the endings that say how a file is read: `.jsonl.gz`, `.TXT`, or nothing."""
    path = PurePosixPath(name)
    last = path.suffix
    if last.lower() not in CODECS:
        return last if last.lower() in SUFFIXES else ""
    inner = PurePosixPath(path.stem).suffix
    return inner + last if inner.lower() in SUFFIXES[:-1] else ""


def format_of(name: str) -> tuple[str, str | None] | None:
    """Return the format and the compression that a name says, None where it is not read here."""
    if name.endswith("/"):
        return SAVED, None
    kind, _, packed = endings_of(name).lower()[1:].partition(".")
    return (f".{kind}", CODECS.get(f".{packed}")) if kind else None


def is_saved(folder: Path) -> bool:
    """Return whether `datasets` has saved a dataset into a folder."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def files_of(path: Path) -> list[Path]:
    """Return the file itself, or the files of a saved dataset."""
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


class _Counted(io.RawIOBase):
    """A binary stream that reports the bytes that are read from it."""

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
def opened(path: Path | HubFile, advance: ReportProgress = ignore) -> Iterator[BinaryIO]:
    """Open the content of a file, unpacked where its name says that it is compressed.

    Raises:
        UserError: the content is not what the name says, or damaged; this also while it is read.
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
            raise UserError(f"{path} is not {codec}, or damaged: {error}") from None


def require_content(path: Path | HubFile, beginning: bytes, expected: str = "text") -> None:
    """Raise a `UserError` where a content begins as something else does than its name says."""
    for magic, found, fix in BEGINNINGS:
        if beginning.startswith(magic) and found != expected:
            raise UserError(f"{path} is {found}, not {expected}; {fix}")


@contextmanager
def naming_bad_bytes(path: Path | HubFile) -> Iterator[None]:
    """Turn the error of a decoder into one that names the file and the first bad byte."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason}, byte {_first_bad_byte(path)}); {CONVERT}"
        ) from None


def require_no_nul(where: str, found: bool) -> None:
    """Raise a `UserError` that names the likely cause where a NUL byte has been found."""
    if found:
        raise UserError(
            f"{where} holds a NUL byte, which is in no text but in UTF-16 without a byte-order"
            f" mark; {CONVERT} -f UTF-16LE -t UTF-8"
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
