"""Files as users have them: compressed, nested, saved by `datasets`, or misnamed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from tests.data.test_corpus import parquet
from tests.properties.test_readers import compressed, parquet_bytes, written
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.manifest import describe_rows_on_disk
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.readers import formats, text_files
from tinystories_hf.data.readers.formats import CODECS, SUFFIXES
from tinystories_hf.data.readers.text_files import read_json
from tinystories_hf.data.splits import OptionalStory
from tinystories_hf.evaluation.arguments import parse_evaluation_arguments

Parse = Callable[..., Arguments]
STORIES = ["One.\n\nMore.", "Two “quoted”, it said.", ""]
PACKED = [f"{kind}{codec}" for kind in SUFFIXES[:-1] for codec in CODECS]


def read(parse: Parse, path: Path, *flags: str) -> list[OptionalStory]:
    flags = ("--validation_file", str(path), *flags)
    return list(open_corpus(parse("--dataset", str(path), *flags).data).train.read())


@pytest.mark.parametrize("suffix", [*SUFFIXES, *PACKED])
def test_every_format_gives_the_same_stories_compressed_or_not_in_any_case(
    tiny_arguments: Parse, tmp_path: Path, suffix: str
) -> None:
    for name in (f"s{suffix}", f"S{suffix.upper()}"):
        path = tmp_path / name
        path.write_bytes(written(suffix, STORIES))
        assert read(tiny_arguments, path) == STORIES


def test_files_compressed_by_other_programs_are_read(tiny_arguments: Parse, tmp_path: Path) -> None:
    text = written(".txt", STORIES)
    for name, content in (
        ("s.txt.gz", gzip.compress(text[:5]) + gzip.compress(text[5:])),
        ("s.txt.bz2", bz2.compress(text)),
    ):
        (tmp_path / name).write_bytes(content)
        assert read(tiny_arguments, tmp_path / name) == STORIES


@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.zst", ".csv.bz2", ".json.lz4"])
def test_a_truncated_compressed_file_is_refused(
    tiny_arguments: Parse, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"s{suffix}"
    path.write_bytes(written(suffix, STORIES * 50)[:-5])
    with pytest.raises(
        UserError, match=r"is not a (gzip|zstd|bz2|lz4) file, or is damaged: Truncated"
    ):
        read(tiny_arguments, path)


# As in TinyStories_all_data: data00.json is one list on one line.
RECORD = {
    "story": "Lily ran.",
    "instruction": {"prompt": "Write.", "words": ["run"]},
    "source": "G",
}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([RECORD] * 3),
        json.dumps([RECORD] * 3, indent=2),
        "\n".join([json.dumps(RECORD)] * 3),
        "".join([json.dumps(RECORD, indent=1)] * 3),
    ],
)
def test_json_is_a_list_or_consecutive_objects(
    tiny_arguments: Parse, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "data00.json"
    path.write_text(content, encoding="utf-8")
    assert read(tiny_arguments, path, "--text_column", "story") == ["Lily ran."] * 3
    assert read(tiny_arguments, path, "--text_column", "instruction.prompt") == ["Write."] * 3
    for column in ("instruction.nothing", "story.text", "nothing.at.all"):
        with pytest.raises(UserError, match=r"data00\.json: record 1.* has no column"):
            read(tiny_arguments, path, "--text_column", column)


def test_a_large_json_list_is_read_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (formats, text_files):
        monkeypatch.setattr(module, "READ_BLOCK_BYTES", 1 << 14)
    path = tmp_path / "data00.json"
    path.write_text(json.dumps([RECORD] * 20_000), encoding="utf-8")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_json(path, "story")) == 20_000
        assert tracemalloc.get_traced_memory()[1] * 4 < path.stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", '[{"text": "a"}, {"text"', "record 2 is not JSON"),
        ("s.json", '[{"text": "a"} {"text": "b"}]', "record 2 is not JSON: a comma is missing"),
        ("s.json", '[{"text": "a"}] x', "there is text after its list"),
        ("s.json", '[{"text": "a"},]', "record 2 is not JSON"),
        ("s.json", '[{"text": "a"}', "record 2 is not JSON: the file ends too early"),
        ("s.json", '{"text": "a"} oops', "record 2 is not JSON"),
        ("s.json", '[["a"]]', "record 1 is not a JSON object"),
        ("s.json", '[{"text": 3}]', "record 1 is 3 instead of text"),
        ("s.csv", "text,n\na,1\nb\n", "line 3 has 1 columns, but the header has 2"),
        ("s.csv", "text,n\na,1,2\n", "line 2 has 3 columns, but the header has 2"),
        ("s.csv", 'text,n\n"a,1\nb,2\n', "line 3 is not CSV: unexpected end of data"),
        ("s.csv", 'text\n"a"b\n', "line 2 is not CSV"),
        ("s.csv", "story\na\n", "has no column 'text'.*story"),
        ("s.csv", "text,text\na,b\n", "has the column 'text' twice"),
        ("s.csv", "text\n" + "a" * 200_000, "line 2 is not CSV: field larger"),
    ],
)
def test_files_whose_records_would_be_lost_or_merged_are_refused(
    tiny_arguments: Parse, tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read(tiny_arguments, path)


def test_a_field_of_a_column_is_read_from_tables(tiny_arguments: Parse, tmp_path: Path) -> None:
    rows = [{"a": {"b": {"c": "deep"}}, "x.y": "named so", "x": {"y": "field"}}] * 2
    table = pa.Table.from_pylist(rows)
    (tmp_path / "s.parquet").write_bytes(parquet_bytes(table))
    datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name in ("s.parquet", "saved", "s.jsonl"):
        path = tmp_path / name
        assert read(tiny_arguments, path, "--text_column", "a.b.c") == ["deep"] * 2
        assert read(tiny_arguments, path, "--text_column", "x.y") == ["named so"] * 2
        with pytest.raises(UserError, match=r"has no column 'd'.*found: (c|none)"):
            read(tiny_arguments, path, "--text_column", "a.b.d")


def test_a_dataset_saved_to_disk_is_read_with_its_splits(
    tiny_arguments: Parse, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = {name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(9)]})
             for name in ("train", "validation", "test")}  # fmt: skip
    datasets.DatasetDict(parts).save_to_disk(
        str(tmp_path / "all"), num_shards={"train": 3, "validation": 1, "test": 1}
    )
    found = open_corpus(tiny_arguments("--dataset", str(tmp_path / "all")).data)
    assert list(found.train.read()) == parts["train"]["text"]
    assert list(found.validation.read()) == parts["validation"]["text"]
    assert "dataset_dict.json, test/ (test)" in capfd.readouterr().err
    one = open_corpus(tiny_arguments("--dataset", str(tmp_path / "all" / "train")).data)
    both = [*one.train.read(), *one.validation.read()]
    assert sorted(map(str, both)) == parts["train"]["text"]
    shard = tmp_path / "all" / "train" / "data-00001-of-00003.arrow"
    before = one.train.identity
    shard.write_bytes(shard.read_bytes().replace(b"train 4", b"train X"))
    changed = open_corpus(tiny_arguments("--dataset", str(tmp_path / "all" / "train")).data)
    assert changed.train.identity != before
    shard.write_bytes(b"")
    with pytest.raises(UserError, match="is not a saved dataset, or is damaged"):
        list(changed.train.read())


NULLS: list[str | None] = ["A cat sat in the sun.", None, "", "A dog ran home.", None] * 60


@pytest.mark.parametrize("kind", [".parquet", ".jsonl", ".json", "saved"])
@pytest.mark.parametrize("held_out", [False, True])
def test_null_texts_are_refused_or_dropped_and_counted(
    tiny_arguments: Parse, tmp_path: Path, kind: str, held_out: bool
) -> None:
    path = tmp_path / f"s{kind}"
    lines = [json.dumps({"text": text}) for text in NULLS]
    if kind == ".parquet":
        path.write_bytes(parquet(NULLS))
    elif kind == "saved":
        datasets.Dataset.from_dict({"text": NULLS}).save_to_disk(str(path))
    else:
        content = "\n".join(lines) if kind == ".jsonl" else f"[{', '.join(lines)}]"
        path.write_text(content, encoding="utf-8")
    flags = ["--dataset", str(path), "--vocab_size", "265"]
    if not held_out:
        flags += ["--validation_file", str(path)]
    with pytest.raises(UserError, match="2 is null instead of text; set drop_null"):
        list(open_corpus(tiny_arguments(*flags).data).train.read())
    arguments = tiny_arguments(*flags, "--drop_null", "--drop_empty")
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    parts = [prepared.manifest.split(name) for name in ("train", "validation")]
    for part in parts:
        lost = part.dropped_null + part.dropped_empty
        assert part.stories_read == part.stories_kept + lost
    nulls, read_ = (
        sum(getattr(p, name) for p in parts) for name in ("dropped_null", "stories_read")
    )
    copies = 1 if held_out else 2
    assert (nulls, read_) == (120 * copies, 300 * copies)
    assert "drop_null" in prepared.manifest.cleaning
    assert "dropped_null" in describe_rows_on_disk(prepared)


UTF16 = "Once upon a time. ".encode("utf-16-le") * 50
SOURCE = b"Once upon a time.\n<|endoftext|>\n" * 50


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.txt", gzip.compress(SOURCE), "is gzip, not text; add .gz to its name"),
        ("s.jsonl", gzip.compress(SOURCE), "is gzip, not text; add .gz to its name"),
        ("s.csv", compressed(".zst", SOURCE), "is zstd, not text; add .zst to its name"),
        ("s.json", bz2.compress(SOURCE), "is bz2, not text"),
        ("s.txt", lzma.compress(SOURCE), "is xz, not text; unpack it first"),
        ("s.txt", b"PK\x03\x04" + SOURCE, "is a zip archive, not text; unpack it"),
        ("s.txt", parquet(["a"]), "is Parquet, not text; rename it to end in .parquet"),
        ("s.parquet", gzip.compress(SOURCE), "is gzip, not Parquet; .*unpack it"),
        ("s.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS.*git lfs pull"),
        ("s.txt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS.*git lfs pull"),
        ("s.txt", b"\xff\xfe" + UTF16, "is UTF-16, not text; .*iconv -f UTF-16 -t UTF-8"),
        ("s.txt.gz", gzip.compress(b"\xff\xfe" + UTF16), "is UTF-16, not text"),
        ("s.txt", UTF16, "contains a NUL byte.*UTF-16.*iconv -f UTF-16LE"),
        ("s.jsonl", '{"text": "a"}'.encode("utf-16-le"), "line 1 contains a NUL byte"),
        ("s.json", '{"text": "a"}'.encode("utf-16-be"), "contains a NUL byte"),
        ("s.csv", "text\na\n".encode("utf-16-le"), "contains a NUL byte"),
        ("s.txt", SOURCE + b"a\0b", "contains a NUL byte"),
        ("s.txt", b"", "has no train stories: it is empty"),
        ("s.txt", b"\n\n \n", "has no train stories"),
        ("s.txt.gz", SOURCE, "is not a gzip file, or is damaged"),
        ("s.gz", gzip.compress(SOURCE), "unknown format; supported formats: .txt"),
        ("s.parquet.gz", b"", "unknown format; supported formats: .txt"),
    ],
)
def test_the_error_for_a_misnamed_file_names_its_real_format(
    tiny_arguments: Parse, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    arguments = tiny_arguments("--dataset", str(path))
    with pytest.raises(UserError, match=message):
        prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    assert not (tmp_path / "prepared").exists()


def test_a_run_record_of_an_earlier_version_has_the_same_text(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    models = [str(tmp_path / name) for name in ("new", "old")]
    for model, later in zip(models, [(), ("story_separator", "drop_null")], strict=True):
        recorded = asdict(tiny_arguments().data)
        Path(model).mkdir()
        settings = {key: value for key, value in recorded.items() if key not in later}
        text: dict[str, Any] = {"train": {"source": {"toy": {}}}}
        record = {"configuration": {"data": settings}, "dataset": text}
        Path(model, "run.json").write_text(json.dumps(record), encoding="utf-8")
    flags = ["--model", *models, "--suite", "loss"]
    assert parse_evaluation_arguments(flags).data.drop_null is False
    other = {"configuration": {"data": {**settings, "drop_null": True}}}
    Path(models[1], "run.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(UserError, match="trained on different data"):
        parse_evaluation_arguments(flags)
