from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import StoredRepository
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.readers import text_files
from tinystories_hf.data.readers.formats import SUFFIXES
from tinystories_hf.data.readers.tables import read_parquet
from tinystories_hf.data.readers.text_files import read_jsonl, read_text
from tinystories_hf.data.splits import END_OF_TEXT

Parse = Callable[..., Arguments]
REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"


def parquet(texts: Sequence[str | None]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "n": range(len(texts))}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "stories"),
    [
        ("A\nb\n<|endoftext|>\nC\n<|endoftext|>\n", ["A\nb", "C"]),
        ("A<|endoftext|>B<|endoftext|>", ["A", "B"]),
        ("A\n<|endoftext|>\nB", ["A", "B"]),
        ("A\r\nb\r\n<|endoftext|>\r\nC\r\n", ["A\nb", "C"]),
        ("A\rb\r<|endoftext|>\r\r\nC<|endoftext", ["A\nb", "C<|endoftext"]),
        ("A\u2028b\x85\x0bc\n<|endoftext|>", ["A\u2028b\x85\x0bc"]),
        ("\ufeffA\n<|endoftext|>\n", ["A"]),
        ("A\n<|endoftext|>\n\n<|endoftext|>\nB", ["A", "", "B"]),
        ("  A \n<|endoftext|>", ["  A "]),
        ("no separator at all", ["no separator at all"]),
        ("", []),
        ("\n\n", []),
    ],
)
@pytest.mark.parametrize("block", [1 << 20, 3])
def test_text_files_are_split_at_the_separator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, stories: list[str], block: int
) -> None:
    monkeypatch.setattr(text_files, "READ_BLOCK_BYTES", block)
    path = tmp_path / "s.txt"
    path.write_bytes(content.encode())
    assert list(read_text(path)) == stories


def test_a_long_text_without_separators_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MAX_STORY_CHARACTERS", 1000)
    monkeypatch.setattr(text_files, "READ_BLOCK_BYTES", 100)
    path = tmp_path / "s.txt"
    path.write_text("word " * 1000)
    with pytest.raises(UserError, match=r"without <\|endoftext\|>"):
        list(read_text(path))


def test_an_error_names_the_first_byte_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_bytes("Zoé\n".encode() * 5 + b"Zo\xe9 ran.\n")
    with pytest.raises(UserError, match=r"s\.txt is not UTF-8 .*byte 27"):
        list(read_text(path))
    path.write_bytes("Zoé\n".encode()[:3])
    with pytest.raises(UserError, match="unexpected end of data, byte 2"):
        list(read_text(path))
    path.write_bytes(b"\xef\xbb")
    with pytest.raises(UserError, match="unexpected end of data, byte 0"):
        list(read_text(path))


def test_a_parquet_file_with_missing_rows_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"story {n}" for n in range(40)]}), buffer, row_group_size=9)
    content, refused = buffer.getvalue(), 0
    for place in range(4, 300):  # the first of five row groups
        path = tmp_path / "s.parquet"
        path.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        try:
            assert len(list(read_parquet(path, "text"))) == 40
        except UserError as error:
            refused += "31 of its 40 rows can be read" in str(error)
    assert refused, "Arrow itself gives 31 stories and no error"


def test_a_line_that_is_too_long_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "MAX_STORY_CHARACTERS", 1000)
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "a"}\n[' + '{"text": "b"}, ' * 100)
    stories = read_jsonl(path, "text")
    assert next(stories) == (1, "a")
    with pytest.raises(UserError, match="line 2 is too long"):
        next(stories)


def test_a_million_separators_are_a_million_stories(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text(END_OF_TEXT * 1_000_000)
    assert Counter(read_text(path)) == {"": 1_000_000}
    path.write_text("a" * 20_000_000 + END_OF_TEXT)
    assert [len(story) for story in read_text(path)] == [20_000_000]


def test_an_error_names_the_unreadable_file(tiny_arguments: Parse, tmp_path: Path) -> None:
    (tmp_path / "train.txt").mkdir()
    (tmp_path / "ring.txt").symlink_to("ring.txt")
    (tmp_path / "broken.jsonl").symlink_to("nowhere")
    (tmp_path / "memory.txt").symlink_to("/proc/self/mem")  # a file without read permission from 0
    os.mkfifo(tmp_path / "pipe.txt")
    places = [tmp_path, *(tmp_path / f"{name}.txt" for name in ("ring", "memory", "pipe"))]
    places += [tmp_path / "broken.jsonl", Path("~no-such-user/s.txt"), tmp_path / ("x" * 300)]
    for place in places:
        with pytest.raises(UserError, match=re.escape(str(place))):
            open_corpus(tiny_arguments("--dataset", str(place)).data)


def test_an_error_names_a_file_that_was_deleted(tiny_arguments: Parse, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        path = tmp_path / f"s{suffix}"
        path.write_bytes(b"")
        found = open_corpus(tiny_arguments("--dataset", str(path)).data)
        path.unlink()
        with pytest.raises(UserError, match=f"s{suffix} .*No such file"):
            list(found.train.read())


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_every_file_format_gives_the_same_stories(
    tiny_arguments: Parse, tmp_path: Path, suffix: str
) -> None:
    stories = ["One.\n\nMore.", "Two “quoted”.", ""]
    path = tmp_path / f"stories{suffix}"
    if suffix == ".txt":
        path.write_text("".join(f"{story}\n<|endoftext|>\n" for story in stories))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories) + "\n")
    else:
        path.write_bytes(parquet(stories))
    data = tiny_arguments("--dataset", str(path), "--validation_file", str(path)).data
    found = open_corpus(data)
    assert list(found.train.read()) == stories
    assert list(found.train.read()) == stories, "a split can be read again"
    assert list(found.validation.read()) == stories


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.jsonl", b'{"text": "a"}\n{"story": "b"}\n', "line 2 has no column 'text'.*story"),
        ("s.jsonl", b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        ("s.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("s.jsonl", b'{"text": "\xe9"}\n', "line 1 is not JSON in UTF-8"),
        ("s.jsonl", b'\n{"text": null}\n', "line 2 is null"),
        (
            "s.jsonl",
            b'{"text": "\\ud83d."}\n',
            r"line 1 has the unpaired surrogate '\\ud83d' at character 0",
        ),
        ("s.jsonl", b'{"text": ' + b"[" * 100_000, "line 1 is not JSON in UTF-8"),
        ("s.parquet", b"PAR? no", "is not a Parquet file"),
        ("s.parquet", parquet(["a", None]), "record 2 is null"),
        (
            "s.parquet",
            parquet(["Lily ran."]).replace(b"Lily", b"L\xff\xfey"),
            "is not.*or is damaged",
        ),
        ("s.parquet", b"PAR1" + b"\xff" * 8 + parquet(["a"])[12:], "or is damaged"),
    ],
)
def test_an_error_names_the_file_and_place_of_a_broken_record(
    tiny_arguments: Parse, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    found = open_corpus(tiny_arguments("--dataset", str(path)).data)
    with pytest.raises(UserError, match=message):
        list(found.train.read())


def test_the_files_of_a_folder_are_assigned_to_splits_by_name(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "TinyStories-train.txt").write_text("A\n<|endoftext|>\n")
    (folder / "TinyStories-valid.txt").write_text("B\n<|endoftext|>\n")
    (folder / "Evaluation prompts.yaml").write_text("- C\n")
    (folder / "training notes.md").write_text("D\n")
    found = open_corpus(tiny_arguments("--dataset", str(folder)).data)
    assert (list(found.train.read()), list(found.validation.read())) == (["A"], ["B"])


def test_an_ambiguous_folder_is_refused(tiny_arguments: Parse, tmp_path: Path) -> None:
    (tmp_path / "TinyStories-train.txt").write_text("A")
    (tmp_path / "TinyStoriesV2-GPT4-train.txt").write_text("B")
    with pytest.raises(UserError, match="set train_file to a name"):
        open_corpus(tiny_arguments("--dataset", str(tmp_path)).data)
    flags = ("--dataset", str(tmp_path), "--train_file", "TinyStoriesV2-GPT4-train.txt")
    chosen = open_corpus(tiny_arguments(*flags, "--validation_file", "TinyStories-train.txt").data)
    assert (list(chosen.train.read()), list(chosen.validation.read())) == (["B"], ["A"])


def test_the_shards_of_one_file_are_read_in_order(tiny_arguments: Parse, tmp_path: Path) -> None:
    for number in range(3):
        name = f"train-0000{number}-of-00003.parquet"
        (tmp_path / name).write_bytes(parquet([f"story {number}"]))
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(parquet(["v"]))
    found = open_corpus(tiny_arguments("--dataset", str(tmp_path)).data)
    assert list(found.train.read()) == ["story 0", "story 1", "story 2"]
    assert list(found.validation.read()) == ["v"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "nowhere.txt"), "nowhere.txt does not exist"),
        (("--dataset", "./nowhere"), "./nowhere does not exist"),
        (("--dataset", "a/b/c"), "a/b/c does not exist"),
        (("--dataset", "nowhere"), "nowhere does not exist"),
    ],
)
def test_a_dataset_that_does_not_exist_is_an_error(
    tiny_arguments: Parse, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_corpus(tiny_arguments(*flags).data)


@pytest.fixture
def tinystories(hub: LoopbackHub) -> LoopbackHub:
    """Serve a small roneneldan/TinyStories in the layout of the real one."""
    hub.repositories["datasets", "roneneldan/TinyStories"] = StoredRepository(
        {
            "README.md": b"---\nlicense: cdla-sharing-1.0\n---\n",
            "data/train-00000-of-00001-abc.parquet": parquet(["Once."] * 5 + [""]),
            "data/validation-00000-of-00001-abc.parquet": parquet(["Twice."]),
            "TinyStoriesV2-GPT4-train.txt": b"One\n<|endoftext|>\nTwo\n<|endoftext|>\n",
            "TinyStoriesV2-GPT4-valid.txt": b"Three\n<|endoftext|>\n",
        },
        first_commit=REVISION,
    )
    return hub


HUB_READ = """
import json, sys
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.core.script import report_user_errors
with report_user_errors():
    found = open_corpus(parse_arguments(sys.argv[1:]).data)
    parts = [list(found.train.read()), list(found.validation.read())]
    print(json.dumps([found.train.identity, *parts]))
"""


@pytest.mark.parametrize(
    ("flags", "train", "validation"),
    [
        ((), ["Once."] * 5 + [""], ["Twice."]),
        (("--dataset_revision", "main"), ["Once."] * 5 + [""], ["Twice."]),
        (
            (
                "--train_file",
                "TinyStoriesV2-GPT4-train.txt",
                "--validation_file",
                "TinyStoriesV2-GPT4-valid.txt",
            ),
            ["One", "Two"],
            ["Three"],
        ),
        (("--train_split", "nosuch"), "cannot read split nosuch", ""),
        (("--text_column", "story"), "no column 'story'", ""),
        (("--dataset_revision", "v9"), "no revision 'v9'", ""),
        (("--dataset", "no/such"), "a repository on http", ""),
        (("--train_file", "nope.txt"), "no file nope.txt", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_hub_datasets_are_read_by_split_or_file_with_the_real_clients(
    tinystories: LoopbackHub,
    run_code: Callable[..., tuple[int, str, str]],
    flags: tuple[str, ...],
    train: list[str] | str,
    validation: list[str] | str,
) -> None:
    code, out, err = run_code(HUB_READ, *flags, HF_ENDPOINT=tinystories.url)
    if isinstance(train, str):
        assert code == 2
        assert train in err
        assert "Traceback" not in err
        return
    assert code == 0, err
    identity, found_train, found_validation = json.loads(out.splitlines()[-1])
    assert identity["commit"] == REVISION
    assert (found_train, found_validation) == (train, validation)
