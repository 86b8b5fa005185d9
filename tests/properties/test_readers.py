"""Any file gives exactly its stories, or a one-sentence error that names file and place.

The expected stories come from an independent implementation, which reads the whole file at once,
and bytes where the package reads text.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from pyarrow import parquet

from tests.properties.drawing import holds_for
from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.readers import text_files
from tinystories_hf.data.readers.formats import BEGINNINGS, CODECS, SUFFIXES
from tinystories_hf.data.splits import END_OF_TEXT, OptionalStory

SEPARATOR = END_OF_TEXT.encode()
BOM = b"\xef\xbb\xbf"
OTHERS = tuple(magic for magic, _, _ in BEGINNINGS)
PIECES = (
    *(
        "a",
        "Lily ran.",
        " ",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\t",
        "\0",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x85",
    ),
    *(
        "\xa0",
        "\u2028",
        "\u2029",
        "\u3000",
        "\ufeff",
        "é",
        "e\u0301",
        "\u0301",
        "日本",
        "🙂",
        "\U0010ffff",
    ),
    *("<", "<|", "<|endoftext", "endoftext|>", "|>", "<|<|endoftext|>|>", "<|EndOfText|>"),
    *(END_OF_TEXT, f"\n{END_OF_TEXT}\n", f"\r\n{END_OF_TEXT}\r\n", END_OF_TEXT * 2),
)
stories_text = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)
blocks = st.integers(1, 40) | st.just(1 << 20)


def data_of(path: Path, **settings: Any) -> DataArguments:
    return DataArguments(str(path), "train", 8, **settings)


def read(path: Path, content: bytes, **settings: Any) -> tuple[list[OptionalStory], str]:
    """Return the stories of a file, and the error that ended them or an empty string."""
    path.write_bytes(content)
    split = open_corpus(data_of(path, validation_file=str(path), **settings)).train
    stories: list[OptionalStory] = []
    try:
        for story in split.read():
            stories.append(story)
    except UserError as error:
        message = str(error)
    else:
        assert list(split.read()) == stories, "a split can be read again"
        return stories, ""
    assert str(path) in message
    return stories, message


def expected_stories(content: bytes, separator: bytes = SEPARATOR) -> list[OptionalStory]:
    """Return the stories of a text file from all its bytes at once.

    Raises:
        UnicodeDecodeError: the content is not UTF-8.
    """
    content.decode()
    lines = content.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *stories, rest = (part.strip(b"\n").decode() for part in lines.split(separator))
    if not separator.strip():
        stories = [story for story in stories if story.strip()]
    return [*stories, rest] if rest.strip() else [*stories]


def stories_of_record(text: str) -> list[OptionalStory]:
    """Return the stories of one record: its text, divided by any separators in it."""
    if END_OF_TEXT not in text:
        return [text]
    *stories, rest = (part.strip("\n") for part in text.split(END_OF_TEXT))
    return [*stories, rest] if rest.strip() else [*stories]


SEPARATORS = {END_OF_TEXT: SEPARATOR, r"\n": b"\n", r"\n\n": b"\n\n", "\r\n": b"\n", "a": b"a"}


@holds_for(
    300,
    text=stories_text,
    bom=st.booleans(),
    block=blocks,
    separator=st.sampled_from([END_OF_TEXT, *SEPARATORS]),
    packed=st.sampled_from(["", "", ".gz", ".zst"]),
)
def test_a_text_file_gives_the_stories_between_its_separators(
    folder: Path, text: str, bom: bool, block: int, separator: str, packed: str
) -> None:
    content = BOM * bom + text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_BLOCK_BYTES", block)
        place = folder / f"s.txt{packed}"
        stories, error = read(place, compressed(packed, content), story_separator=separator)
    if b"\0" in content:
        assert "contains a NUL byte" in error
    else:
        assert (stories, error) == (expected_stories(content, SEPARATORS[separator]), "")


@holds_for(
    150,
    parts=st.lists(
        st.binary(max_size=6)
        | st.sampled_from([SEPARATOR, BOM, b"\xe2\x80", b"\xed\xa0\x80", b"\n"]),
        max_size=8,
    ),
    block=blocks,
)
def test_any_bytes_are_stories_or_an_error_that_names_the_first_bad_one(
    folder: Path, parts: list[bytes], block: int
) -> None:
    content = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_BLOCK_BYTES", block)
        stories, error = read(folder / "s.txt", content)
    try:
        expected, place = expected_stories(content), ""
    except UnicodeDecodeError as bad:
        expected, place = stories, f"byte {bad.start})"
    if content.startswith(OTHERS):
        expected, place = [], "s.txt is "
    elif b"\0" in content and "NUL" in error:
        expected, place = stories, "contains a NUL byte"
    assert stories == expected
    assert place in error
    assert bool(place) == bool(error)


@holds_for(100, text=stories_text, limit=st.integers(1, 60), block=st.integers(1, 20))
def test_a_long_text_is_read_completely_or_refused(
    folder: Path, text: str, limit: int, block: int
) -> None:
    longest = max(map(len, text.split(END_OF_TEXT)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_BLOCK_BYTES", block)
        patch.setattr(text_files, "MAX_STORY_CHARACTERS", limit)
        stories, error = read(folder / "s.txt", text.encode())
    if "NUL" in error:
        assert "\0" in text
    elif error:
        assert longest > limit - len(END_OF_TEXT)
    else:
        assert stories == expected_stories(text.encode())
        assert longest <= limit + block + len(END_OF_TEXT)


@holds_for(
    100,
    stories=st.lists(
        st.text(max_size=20).map(lambda text: text.replace("\r", "").replace("\0", "")), max_size=20
    ),
    share=st.floats(1e-9, 1, exclude_max=True),
    seed=st.integers(-(2**63) + 1, 2**63 - 1),
    shards=st.integers(1, 3),
)
def test_no_story_is_lost_when_some_are_held_out_in_any_format(
    folder: Path, stories: list[str], share: float, seed: int, shards: int
) -> None:
    stories = [story.strip("\n") for story in stories]
    found = []
    for suffix in (*SUFFIXES, ".jsonl.zst"):
        place = folder / suffix[1:]
        place.mkdir()
        for shard in range(shards):
            name = f"train-0000{shard}-of-0000{shards}{suffix}"
            (place / name).write_bytes(written(suffix, stories[shard::shards]))
        parts = open_corpus(data_of(place, validation_share=share, validation_seed=seed))
        found.append([list(parts.train.read()), list(parts.validation.read())])
    train, validation = found[0]
    assert all(parts == found[0] for parts in found)
    assert Counter(train + validation) == Counter(stories)
    assert not set(train) & set(validation)
    if len({story for story in stories if story.strip()}) > 1:
        assert train
        assert validation


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, **options)
    return buffer.getvalue()


def written(suffix: str, stories: Iterable[str]) -> bytes:
    """Return the bytes of a file of stories."""
    if suffix == ".txt":
        # With a byte-order mark, so that a story that begins with one keeps it.
        return "".join(f"{story}\n{END_OF_TEXT}\n" for story in stories).encode("utf-8-sig")
    if suffix == ".jsonl":
        return "".join(json.dumps({"text": story}) + "\n" for story in stories).encode()
    if suffix == ".json":
        return json.dumps([{"text": story} for story in stories]).encode()
    if suffix == ".csv":
        lines = io.StringIO()
        csv.writer(lines, quoting=csv.QUOTE_ALL).writerows([["text"], *([s] for s in stories)])
        return lines.getvalue().encode()
    if suffix != ".parquet":
        kind, _, codec = suffix.rpartition(".")
        return compressed(f".{codec}", written(kind, stories))
    return parquet_bytes(pa.table({"text": pa.array(stories, pa.string())}))


def compressed(suffix: str, content: bytes) -> bytes:
    """Return a content compressed according to the suffix of a name."""
    if not suffix:
        return content
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, CODECS[suffix]) as stream:
        stream.write(content)
    return bytes(buffer.getvalue())
