"""Any file of records gives exactly their stories, or a one-sentence error with the place."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st

from tests.properties.drawing import holds_for
from tests.properties.test_readers import (
    BOM,
    OTHERS,
    blocks,
    compressed,
    parquet_bytes,
    read,
    stories_of_record,
    stories_text,
)
from tinystories_hf.data.readers import text_files
from tinystories_hf.data.splits import OptionalStory


def line_of(text: str, ascii_only: bool, more: dict[str, Any]) -> tuple[bytes, list[OptionalStory]]:
    record = json.dumps({**more, "text": text}, ensure_ascii=ascii_only)
    return record.encode(), stories_of_record(text)


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
blank_lines: st.SearchStrategy[tuple[bytes, list[OptionalStory]]] = st.sampled_from(
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
    folder: Path,
    lines: list[tuple[bytes, list[OptionalStory] | None]],
    ends: bytes,
    last: bool,
    bom: bool,
) -> None:
    body = ends.join(line for line, _ in lines) + ends * last
    content = body if body.startswith(BOM) else BOM * bom + body
    stories, error = read(folder / "s.jsonl", content)
    expected: list[OptionalStory] = []
    for number, (_, in_line) in enumerate(lines, start=1):
        if in_line is None:
            assert f"line {number}" in error, error
            assert len(error) < 2000
            break
        expected += in_line
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
    expected = [story for text in texts for story in stories_of_record(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_BLOCK_BYTES", block)
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
        assert "contains a NUL byte" in error
    else:
        assert (stories, error) == ([s for text in texts for s in stories_of_record(text)], "")


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
    """Return an Arrow column of texts, or of another type in their place."""
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
    expected: list[OptionalStory] = []
    if name != "text":
        assert "has no column 'text'" in error
        texts = []
    for number, text in enumerate(texts, start=1):
        if text is None or not KINDS[kind][1]:
            assert f"record {number} is " in error
            break
        expected += stories_of_record(text)
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
def test_a_truncated_parquet_file_is_refused(folder: Path, cut: int, tail: bytes) -> None:
    content = WHOLE[:cut] + tail
    stories, error = read(folder / "s.parquet", content)
    assert content == WHOLE or (error and stories == [])


@holds_for(
    150,
    damage=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=4
    ),
)
def test_a_damaged_parquet_file_gives_text_or_is_refused(
    folder: Path, damage: list[tuple[int, int]]
) -> None:
    content = bytearray(WHOLE)
    for at, change in damage:
        content[at] ^= change
    stories, error = read(folder / "s.parquet", bytes(content))
    assert error or len(stories) == 40
    assert all(isinstance(story, str) for story in stories)
