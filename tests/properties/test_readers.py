"""Whatever a file of stories holds: exactly its stories, or one sentence that names file and place.

What a file's stories are is told here by a reading of their own: of the whole file at once, and of
bytes where the package reads text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from pyarrow import parquet

from tests.properties.drawing import holds_for
from tinystories_hf import readers
from tinystories_hf.arguments import DataArguments
from tinystories_hf.corpus import open_corpus
from tinystories_hf.errors import UserError
from tinystories_hf.formats import BEGINNINGS, CODECS, SUFFIXES
from tinystories_hf.splits import Story
from tinystories_hf.tokenizer import END_OF_TEXT

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


def read(path: Path, content: bytes, **settings: Any) -> tuple[list[Story], str]:
    """Return the stories of a file, and the error that ended them or nothing."""
    path.write_bytes(content)
    split = open_corpus(data_of(path, validation_file=str(path), **settings)).train
    stories: list[Story] = []
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


def told_by(content: bytes, separator: bytes = SEPARATOR) -> list[Story]:
    """Return the stories of a text file, told from its bytes as a whole.

    Raises:
        UnicodeDecodeError: the content is not UTF-8.
    """
    content.decode()
    lines = content.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *stories, rest = (part.strip(b"\n").decode() for part in lines.split(separator))
    if not separator.strip():
        stories = [story for story in stories if story.strip()]
    return [*stories, rest] if rest.strip() else [*stories]


def told_by_record(text: str) -> list[Story]:
    """Return the stories of one record: its text as it is, unless separators part it."""
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
        patch.setattr(readers, "BLOCK", block)
        place = folder / f"s.txt{packed}"
        stories, error = read(place, compressed(packed, content), story_separator=separator)
    if b"\0" in content:
        assert "holds a NUL byte" in error
    else:
        assert (stories, error) == (told_by(content, SEPARATORS[separator]), "")


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
        patch.setattr(readers, "BLOCK", block)
        stories, error = read(folder / "s.txt", content)
    try:
        expected, place = told_by(content), ""
    except UnicodeDecodeError as bad:
        expected, place = stories, f"byte {bad.start})"
    if content.startswith(OTHERS):
        expected, place = [], "s.txt is "
    elif b"\0" in content and "NUL" in error:
        expected, place = stories, "holds a NUL byte"
    assert stories == expected
    assert place in error
    assert bool(place) == bool(error)


@holds_for(100, text=stories_text, limit=st.integers(1, 60), block=st.integers(1, 20))
def test_a_long_text_is_read_whole_or_refused(
    folder: Path, text: str, limit: int, block: int
) -> None:
    longest = max(map(len, text.split(END_OF_TEXT)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK", block)
        patch.setattr(readers, "MAX_STORY_CHARACTERS", limit)
        stories, error = read(folder / "s.txt", text.encode())
    if "NUL" in error:
        assert "\0" in text
    elif error:
        assert longest > limit - len(END_OF_TEXT)
    else:
        assert stories == told_by(text.encode())
        assert longest <= limit + block + len(END_OF_TEXT)


def line_of(text: str, ascii_only: bool, more: dict[str, Any]) -> tuple[bytes, list[Story]]:
    record = json.dumps({**more, "text": text}, ensure_ascii=ascii_only)
    return record.encode(), told_by_record(text)


good_lines = st.builds(
    line_of,
    stories_text,
    st.booleans(),
    st.dictionaries(
        st.text(max_size=3),
        st.none() | st.floats() | st.lists(st.integers(), max_size=2),
        max_size=2,
    ),
)
blank_lines: st.SearchStrategy[tuple[bytes, list[Story]]] = st.sampled_from(
    [b"", b" ", b"\t", b"\r", BOM, BOM + b" "]
).map(lambda line: (line, []))
twice = st.just((b'{"text": "a", "text": "b"}', ["b"]))
bad_lines = st.sampled_from(
    [
        *(b'{"text": "a"', b'{"text": null}', b'{"text": 3}', b'{"text": NaN}', b'{"text": ["a"]}'),
        *(b'{"text": "\\ud800"}', b'{"text": "\\udc00\\ud800"}', b'{"text": "\xed\xa0\x80"}', b"3"),
        *(
            b'{"text": "\xff"}',
            b'{"Text": "a"}',
            b"{}",
            b"[]",
            b'"text"',
            b'{"text": "a\0"}',
            b"\0",
        ),
        *(
            b'{"text": "a"} {"text": "b"}',
            b"[" * 100_000,
            b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        ),
        *(b'{"n": ' + b"9" * 5000 + b', "text": "a"}', b"'", b"\xe2\x80", "\x85".encode(), b"nul"),
    ]
).map(lambda line: (line, None))


@holds_for(
    250,
    lines=st.lists(good_lines | blank_lines | twice | st.one_of(good_lines, bad_lines), max_size=6),
    ends=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    bom=st.booleans(),
)
def test_a_jsonl_file_gives_the_stories_of_its_lines_up_to_the_first_bad_one(
    folder: Path, lines: list[tuple[bytes, list[Story] | None]], ends: bytes, last: bool, bom: bool
) -> None:
    body = ends.join(line for line, _ in lines) + ends * last
    content = body if body.startswith(BOM) else BOM * bom + body
    stories, error = read(folder / "s.jsonl", content)
    expected: list[Story] = []
    for number, (_, told) in enumerate(lines, start=1):
        if told is None:
            assert f"line {number}" in error, error
            assert len(error) < 2000
            break
        expected += told
    else:
        assert error == ""
    assert stories == expected


@holds_for(
    200,
    texts=st.lists(stories_text, max_size=5),
    in_list=st.booleans(),
    indent=st.sampled_from([None, 1]),
    bom=st.booleans(),
    space=st.sampled_from(["", " ", "\n", "\r\n\t"]),
    block=blocks,
    cut=st.integers(0, 400),
)
def test_a_json_file_gives_the_stories_of_its_objects_or_is_refused_where_it_was_cut(
    folder: Path,
    texts: list[str],
    in_list: bool,
    indent: int | None,
    bom: bool,
    space: str,
    block: int,
    cut: int,
) -> None:
    objects = [{"n": [{"a": "]"}, 1.5], "text": text} for text in texts]
    if in_list:
        body = json.dumps(objects, indent=indent, ensure_ascii=False)
    else:
        body = space.join(json.dumps(one, indent=indent) for one in objects)
    content = BOM * bom + f"{space}{body}{space}".encode()
    expected = [story for text in texts for story in told_by_record(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK", block)
        assert read(folder / "s.json", content) == (expected, "")
        short = content.rstrip()[:-1][:cut]
        stories, error = read(folder / "s.json", short)
    assert stories == expected[: len(stories)]
    if in_list and short.removeprefix(BOM).strip():
        assert re.search(r"record \d+ is not JSON|is not UTF-8", error)


@holds_for(
    200,
    texts=st.lists(stories_text, max_size=5),
    before=st.booleans(),
    ends=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    packed=st.sampled_from(["", ".bz2", ".lz4"]),
)
def test_a_csv_file_gives_the_stories_of_its_rows(
    folder: Path,
    texts: list[str],
    before: bool,
    ends: str,
    bom: bool,
    packed: str,
) -> None:
    rows = [["text", "n"], *([text, "a,\n"] for text in texts)]
    lines = io.StringIO(newline="")
    csv.writer(lines, quoting=csv.QUOTE_ALL, lineterminator=ends).writerows(
        row[::-1] if before else row for row in rows
    )
    content = BOM * bom + lines.getvalue().encode()
    stories, error = read(folder / f"s.csv{packed}", compressed(packed, content))
    if "\0" in "".join(texts):
        assert "holds a NUL byte" in error
    else:
        assert (stories, error) == ([s for text in texts for s in told_by_record(text)], "")


@holds_for(100, content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_as_jsonl_are_refused_by_line(folder: Path, content: bytes) -> None:
    stories, error = read(folder / "s.jsonl", content)
    assert stories == []
    if content.startswith(OTHERS):
        assert "s.jsonl is " in error
        return
    blank = not content.replace(BOM, b"").strip()
    assert blank or re.search(r"s\.jsonl, line \d+ ", error)


KINDS: dict[str, tuple[pa.DataType, bool]] = {
    "string": (pa.string(), True),
    "large_string": (pa.large_string(), True),
    "string_view": (pa.string_view(), True),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), True),
    "binary": (pa.binary(), False),
    "list": (pa.list_(pa.string()), False),
    "struct": (pa.struct([("text", pa.string())]), False),
    "int": (pa.int64(), False),
}


def column(kind: str, texts: list[str | None]) -> pa.Array:
    """Return an Arrow column of some type that holds texts, or something in their place."""
    arrow = KINDS[kind][0]
    if kind == "dictionary":
        return pa.array(texts, pa.string()).dictionary_encode()
    made: dict[str, Any] = {
        "binary": lambda text: text.encode(),
        "list": lambda text: [text],
        "struct": lambda text: {"text": text},
        "int": len,
    }
    make = made.get(kind, str)
    return pa.array([None if text is None else make(text) for text in texts], arrow)


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, **options)
    return buffer.getvalue()


@holds_for(
    250,
    texts=st.lists(stories_text | st.sampled_from([None, ""]), max_size=6),
    kind=st.sampled_from(sorted(KINDS) + ["string"] * 4),
    name=st.sampled_from(["text"] * 4 + ["Text", "text.en", "", "a.text"]),
    others=st.lists(
        st.sampled_from(["id", "text.en", "text.", "a", "té"]), unique=True, max_size=2
    ),
    group=st.integers(1, 4),
    codec=st.sampled_from(["snappy", "none", "zstd"]),
)
def test_a_parquet_file_gives_the_stories_of_its_column(
    folder: Path,
    texts: list[str | None],
    kind: str,
    name: str,
    others: list[str],
    group: int,
    codec: str,
) -> None:
    columns = {other: pa.array([f"not this {other}"] * len(texts)) for other in others}
    table = pa.table({**columns, name: column(kind, texts)})
    content = parquet_bytes(table, row_group_size=group, compression=codec)
    stories, error = read(folder / "s.parquet", content)
    expected: list[Story] = []
    if name != "text":
        assert "has no column 'text'" in error
        texts = []
    for number, text in enumerate(texts, start=1):
        if text is None or not KINDS[kind][1]:
            assert f"record {number} holds" in error
            break
        expected += told_by_record(text)
    else:
        assert name != "text" or error == ""
    assert stories == expected


WHOLE = parquet_bytes(
    pa.table({"text": [f"Story {n} é." * 9 for n in range(40)], "n": range(40)}), row_group_size=9
)


@holds_for(
    100,
    cut=st.integers(0, len(WHOLE) - 1),
    tail=st.binary(max_size=9) | st.just(b"PAR1"),
)
def test_a_parquet_file_that_was_cut_is_refused(folder: Path, cut: int, tail: bytes) -> None:
    content = WHOLE[:cut] + tail
    stories, error = read(folder / "s.parquet", content)
    assert content == WHOLE or (error and stories == [])


@holds_for(
    150,
    damage=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=4
    ),
)
def test_a_parquet_file_that_was_damaged_gives_text_or_is_refused(
    folder: Path, damage: list[tuple[int, int]]
) -> None:
    content = bytearray(WHOLE)
    for at, change in damage:
        content[at] ^= change
    stories, error = read(folder / "s.parquet", bytes(content))
    assert error or len(stories) == 40
    assert all(isinstance(story, str) for story in stories)


@holds_for(
    100,
    stories=st.lists(
        st.text(max_size=20).map(lambda text: text.replace("\r", "").replace("\0", "")), max_size=20
    ),
    share=st.floats(1e-9, 1, exclude_max=True),
    seed=st.integers(-(2**63) + 1, 2**63 - 1),
    shards=st.integers(1, 3),
)
def test_held_out_and_kept_stories_are_all_of_them_in_every_format(
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


def written(suffix: str, stories: Iterable[str]) -> bytes:
    """Return the bytes of a file of stories."""
    if suffix == ".txt":
        # With a byte-order mark, so that a story that begins with one keeps its own.
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
    """Return a content packed as the ending of a name says."""
    if not suffix:
        return content
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, CODECS[suffix]) as stream:
        stream.write(content)
    return bytes(buffer.getvalue())
