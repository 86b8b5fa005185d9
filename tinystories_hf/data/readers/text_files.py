"""Read the stories of a file in any supported format; one block of it is in memory at a time.

Compressed files, Parquet and saved datasets are read by Arrow and `datasets`. CSV is read by the
standard library, since Arrow reads everything after an unclosed quote as one last row. JSON is
decoded by the standard library from a moving window; `datasets` and pandas load a whole JSON list.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.data.readers.formats import (
    READ_BLOCK_BYTES,
    SAVED,
    format_of,
    naming_bad_bytes,
    opened,
    require_no_nul,
)
from tinystories_hf.data.readers.tables import (
    read_parquet,
    read_saved,
    require_column,
    stories_of_records,
    text_at,
)
from tinystories_hf.data.splits import END_OF_TEXT, OptionalStory, ReportProgress, ignore_progress

if TYPE_CHECKING:
    from tinystories_hf.config.data_arguments import DataArguments
    from tinystories_hf.core.download import HubFile

# A story has about 900 characters. A text that is longer than this without a separator, or a longer
# line of .jsonl, is not a file of stories, and reading on could exhaust the memory.
MAX_STORY_CHARACTERS = 64 << 20
# The longest of the 13,736 stories in ../shared has 4,700 characters.
LONGEST_UNDIVIDED = 8 << 10
# Separators of other corpora, suggested if a file does not contain `story_separator`.
OTHER_SEPARATORS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>", "<EOS>", "[EOS]")
_JSON_SPACE = re.compile(r"[ \t\r\n]*")


def read_stories(
    path: Path | HubFile, data: DataArguments, advance: ReportProgress
) -> Iterator[OptionalStory]:
    """Yield the stories of a file or saved dataset; with `drop_null`, None for a null text.

    Raises:
        UserError: it cannot be read, its content does not match its name, or a record has no text.
    """
    saved = isinstance(path, Path) and path.is_dir()
    kind = SAVED if saved else (format_of(path.name) or ("", None))[0]
    with reporting_unreadable("dataset", path):
        if kind == ".txt":
            yield from read_text(path, data.separator, advance)
            return
        read: dict[
            str, tuple[str, Callable[[Any, str, ReportProgress], Iterator[tuple[int, object]]]]
        ] = {
            ".jsonl": (f"{path}, line", read_jsonl),
            ".json": (f"{path}: record", read_json),
            ".csv": (f"{path}, line", read_csv),
            ".parquet": (f"{path}: record", read_parquet),
            SAVED: (f"{path}: record", read_saved),
        }
        where, records = read[kind]
        found = records(path, data.text_column, advance)
        yield from stories_of_records(where, found, data.drop_null)


def read_text(
    path: Path | HubFile, separator: str = END_OF_TEXT, advance: ReportProgress = ignore_progress
) -> Iterator[str]:
    r"""Yield the stories of a text file, divided by `separator`, on its own line or inline.

    Newlines next to a separator are removed. The text after the last separator is a story unless it
    is blank. If the separator is white space, blank stories are skipped. The line ends `\r\n` and
    `\r` are read as `\n`; a byte-order mark is skipped.

    Raises:
        UserError: the file is not UTF-8 or contains NUL, 64 million characters contain no
            separator, or a file of over 8,192 characters contains none at all.
    """
    rest, mark = "", "\ufeff"  # "utf-8-sig" reads a file of one byte of a mark as empty
    divided, layout = False, separator.isspace()
    with naming_bad_bytes(path), opened(path, advance) as binary:
        stream = io.TextIOWrapper(binary, encoding="utf-8", newline=None)
        while block := stream.read(READ_BLOCK_BYTES):
            require_no_nul(str(path), "\0" in block)
            block, mark = block.removeprefix(mark), ""
            *stories, rest = (rest + block).split(separator)
            divided |= bool(stories)
            for story in stories:
                if not layout or story.strip():
                    yield story.strip("\n")
            if len(rest) > MAX_STORY_CHARACTERS:
                raise _undivided(path, separator, rest, f"{MAX_STORY_CHARACTERS >> 20} million")
    if len(rest) > LONGEST_UNDIVIDED and not divided:
        raise _undivided(path, separator, rest, f"{len(rest):,}")
    if rest.strip():
        yield rest.strip("\n")


def _undivided(path: Path | HubFile, separator: str, text: str, characters: str) -> UserError:
    """Return the error for a text without separators, which suggests the likely separator."""
    text = text[:READ_BLOCK_BYTES]
    counts = {mark: text.count(mark) for mark in OTHER_SEPARATORS if mark in text}
    paragraphs, lines = text.strip().count("\n\n"), len(text.strip().splitlines())
    if counts:
        mark, count = max(counts.items(), key=lambda item: item[1])
        hint = f", perhaps '{mark}', which occurs {count:,} times"
    elif paragraphs:
        hint = rf", perhaps '\n\n' ({paragraphs:,} blank lines) or '\n' ({lines:,} lines)"
    elif lines > 1:
        hint = rf", perhaps '\n' ({lines:,} lines)"
    else:
        hint = f", or put {END_OF_TEXT} after each story"
    shown = json.dumps(separator, ensure_ascii=False)[1:-1]
    return UserError(
        f"{path} has {characters} characters without {shown}, the separator of stories; set the"
        f" separator of this file with --story_separator{hint}"
    )


def read_jsonl(
    path: Path | HubFile, text_column: str, advance: ReportProgress = ignore_progress
) -> Iterator[tuple[int, object]]:
    """Yield the number of each JSON line and its text; blank lines are skipped.

    Raises:
        UserError: a line is not UTF-8, is not a JSON object, has no `text_column`, or has over
            64 million bytes.
    """
    with opened(path, advance) as stream:
        lines = iter(lambda: stream.readline(MAX_STORY_CHARACTERS), b"")
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            if len(line) == MAX_STORY_CHARACTERS:
                raise UserError(f"{where} is too long; put each story on its own line")
            if not line.removeprefix(codecs.BOM_UTF8).strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                require_no_nul(where, b"\0" in line)
                raise UserError(f"{where} is not JSON in UTF-8: {error}") from None
            yield number, text_at(where, record, text_column)


def read_json(
    path: Path | HubFile, text_column: str, advance: ReportProgress = ignore_progress
) -> Iterator[tuple[int, object]]:
    """Yield the number of each JSON object and its text; a list, or objects one after another.

    Raises:
        UserError: the file is not UTF-8 or not JSON, or a record is not an object, has no
            `text_column`, or has over 64 million characters.
    """
    with naming_bad_bytes(path), opened(path, advance) as binary:
        stream = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        for number, record in enumerate(_json_values(path, stream), start=1):
            yield number, text_at(f"{path}: record {number}", record, text_column)


def _json_values(path: Path | HubFile, stream: io.TextIOWrapper) -> Iterator[object]:
    """Yield the values of a JSON list, or values one after another."""
    decode = json.JSONDecoder().raw_decode
    text = stream.read(READ_BLOCK_BYTES).removeprefix("\ufeff")
    while _after_space(text, 0) == len(text) and (block := stream.read(READ_BLOCK_BYTES)):
        text = block
    at = _after_space(text, 0)
    in_list, at_end = text.startswith("[", at), False
    at += in_list
    for number in itertools.count(1):
        comma, size = in_list and number > 1, READ_BLOCK_BYTES
        while True:
            here, why = _after_space(text, at), "the file ends too early"
            if here == len(text) and at_end and not in_list:
                return
            if in_list and text.startswith("]", here):
                _require_end(path, stream, text[here + 1 :])
                return
            if comma and here < len(text) and text[here] != ",":
                raise UserError(
                    f"{path}: record {number} is not JSON: a comma is missing before it"
                )
            try:
                value, at = decode(text, _after_space(text, here + comma))
                break
            except (ValueError, RecursionError) as error:
                why = str(error) if here < len(text) else why
            if at_end or len(text) - at > MAX_STORY_CHARACTERS:
                require_no_nul(str(path), "\0" in text)
                raise UserError(f"{path}: record {number} is not JSON: {why}")
            block = stream.read(size)
            text, at, at_end, size = text[at:] + block, 0, not block, 2 * size
        yield value


def _after_space(text: str, at: int) -> int:
    """Return the position after the JSON white space at `at`."""
    found = _JSON_SPACE.match(text, at)
    return found.end() if found else at


def _require_end(path: Path | HubFile, stream: io.TextIOWrapper, rest: str) -> None:
    while _after_space(rest, 0) == len(rest):
        rest = stream.read(READ_BLOCK_BYTES)
        if not rest:
            return
    raise UserError(f"{path} is not JSON: there is text after its list")


def read_csv(
    path: Path | HubFile, text_column: str, advance: ReportProgress = ignore_progress
) -> Iterator[tuple[int, object]]:
    """Yield the text of each row below the header, with the number of the line where it ends.

    Raises:
        UserError: a row is not UTF-8 or not CSV, does not have the columns of the header, or has a
            text of over 131,072 characters.
    """
    with naming_bad_bytes(path), opened(path, advance) as binary:
        stream = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        reader = csv.reader(_lines(path, stream), strict=True)
        header: list[str] | None = None
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if header is None:
                    header = row
                    require_column(where, text_column, header)
                    if header.count(text_column) > 1:
                        raise UserError(f"{where} has the column {text_column!r} twice; rename one")
                elif row:
                    if len(row) != len(header):
                        raise UserError(
                            f"{where} has {len(row)} columns, but the header has {len(header)}"
                        )
                    yield reader.line_num, row[header.index(text_column)]
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _lines(path: Path | HubFile, stream: io.TextIOWrapper) -> Iterator[str]:
    """Yield the lines of a text, including their line ends."""
    mark = "\ufeff"
    while line := stream.readline(MAX_STORY_CHARACTERS):
        require_no_nul(str(path), "\0" in line)
        if len(line) == MAX_STORY_CHARACTERS:
            raise UserError(f"{path} has a line that is too long; check that it is CSV")
        yield line.removeprefix(mark)
        mark = ""


def read_files(
    paths: Iterable[Path | HubFile], data: DataArguments, advance: ReportProgress
) -> Iterator[OptionalStory]:
    """Yield the stories of several files, one file after another."""
    return itertools.chain.from_iterable(read_stories(path, data, advance) for path in paths)


def separator_identity(data: DataArguments) -> dict[str, str]:
    """Return the separator as a part of the identity, or nothing for the default separator."""
    return {"separator": data.separator} if data.separator != END_OF_TEXT else {}
