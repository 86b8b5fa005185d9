from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tests.support.forked import run_forked
from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data import prepare as data_module
from tinystories_hf.data.manifest import (
    PreparedData,
    describe_rows_on_disk,
    load_prepared,
    rows_file,
    token_stream,
)
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.tokenization.tokenize import WordTokenizer
from tinystories_hf.data.toy import TOY_FORMAT

Parse = Callable[..., Arguments]


def prepare_with(parse: Parse, *flags: str) -> PreparedData:
    arguments = parse(*flags)
    return prepare(arguments.data, arguments.model.vocab_size, quiet=True)


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def naive_stream(prepared: PreparedData, stories: list[str]) -> list[int]:
    """Tokenize one story after another with the tokenizer itself."""
    ids: list[int] = []
    for story in stories:
        ids += prepared.tokenizer(story, add_special_tokens=False).input_ids
        ids.append(prepared.tokenizer.eos_token_id)
    return ids


def test_rows_are_the_stream_of_all_stories_with_an_eos_each(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    stories = [f"Story {number} " + "went on and on. " * (number % 9) for number in range(200)]
    for name in ("train", "valid"):
        text = "".join(f"{story}\n<|endoftext|>\n" for story in stories)
        (tmp_path / f"{name}.txt").write_text(text)
    prepared = prepare_with(tiny_arguments, "--dataset", str(tmp_path), "--vocab_size", "280")
    expected = naive_stream(prepared, stories)
    assert token_stream(prepared, "train").tolist() == expected
    rows = np.array(prepared.rows("train")["input_ids"])
    assert rows.shape == (len(expected) // 64, 64)
    assert rows.flatten().tolist() == expected[: rows.size]
    counts = prepared.manifest.split("train")
    assert counts.tokens_in == len(expected) == counts.tokens_out + counts.tokens_dropped
    assert counts.bytes == sum(len(story.encode()) for story in stories)
    assert counts.stories_kept == 200
    assert prepared.rows("train").features["input_ids"] == datasets.List(
        datasets.Value("uint16"), 64
    )


def test_rows_do_not_depend_on_batches_or_threads(
    tiny_arguments: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, (batch, parallel) in enumerate([(512, "true"), (7, "false"), (1, "true")]):
        monkeypatch.setattr(data_module, "STORIES_PER_BATCH", batch)
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        prepared = prepare_with(tiny_arguments, "--prepared_dir", str(tmp_path / str(number)))
        found.append(rows_file(prepared.path, "train").read_bytes())
    assert found[0] == found[1] == found[2]


def test_a_second_run_uses_the_cache(
    tiny_arguments: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_with(tiny_arguments)

    def never(*_: Any) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(WordTokenizer, "__call__", never)
    second = prepare_with(tiny_arguments)
    assert second.path == first.path
    assert second.manifest == first.manifest
    assert second.rows("train")["input_ids"] == first.rows("train")["input_ids"]


def test_every_setting_that_changes_rows_changes_the_fingerprint(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    text = tmp_path / "stories.txt"
    text.write_text("A cat sat on a mat in the sun.\n<|endoftext|>\n" * 200)
    folders = {prepare_with(tiny_arguments).path}
    variants = [
        ("--toy_seed", "1"),
        ("--toy_stories", "301"),
        ("--context_length", "32"),
        ("--vocab_size", "300"),
        ("--validation_share", "0.1"),
        ("--validation_seed", "1"),
        ("--drop_duplicates",),
        ("--repair_mojibake",),
    ]
    for flags in variants:
        folders.add(prepare_with(tiny_arguments, *flags).path)
    assert len(folders) == 1 + len(variants)
    valid = ("--validation_file", str(text), "--vocab_size", "265")
    before = prepare_with(tiny_arguments, "--dataset", str(text), *valid)
    stat = text.stat()
    text.write_text(text.read_text().replace("cat", "dog"))
    os.utime(text, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = prepare_with(tiny_arguments, "--dataset", str(text), *valid)
    assert before.path != after.path, "same name, size and time, but another content"


def test_a_failure_leaves_nothing_behind(
    tiny_arguments: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Iterator[Any]:
        raise RuntimeError("power cut")

    before = everything_below(tmp_path)
    monkeypatch.setattr(WordTokenizer, "__call__", breaks)
    with pytest.raises(RuntimeError):
        prepare_with(tiny_arguments, "--prepared_dir", str(tmp_path / "new" / "deep"))
    assert everything_below(tmp_path) == before


def test_two_processes_that_prepare_at_once_share_one_folder(
    tiny_arguments: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = data_module._write
    written: list[Any] = []

    def slowly(*arguments: Any) -> None:
        written.append(arguments)
        time.sleep(0.5)
        write(*arguments)

    monkeypatch.setattr(data_module, "_write", slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepare_with, [tiny_arguments] * 2)
    assert first.path == second.path
    assert len(written) == 1, "the rows are made once"
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


def test_the_next_preparation_removes_what_a_killed_one_left(tiny_arguments: Parse) -> None:
    folder = prepare_with(tiny_arguments).path
    left = folder.with_name(f".{folder.name}.unfinished")
    folder.rename(left)
    (left / "manifest.json").unlink()
    prepare_with(tiny_arguments)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_error_for_a_damaged_folder_says_what_to_remove(tiny_arguments: Parse) -> None:
    prepared = prepare_with(tiny_arguments)
    with rows_file(prepared.path, "train").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(UserError, match=r"train/data.* is damaged; remove"):
        prepare_with(tiny_arguments)
    (prepared.path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not a complete prepared folder"):
        load_prepared(prepared.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no train stories"),
        ("Hi.\n<|endoftext|>\n", "fewer than one row of context_length 64"),
    ],
)
def test_too_little_text_is_an_error_and_leaves_no_folder(
    tiny_arguments: Parse, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "s.txt"
    path.write_text(text)
    prepare_with(tiny_arguments).tokenizer.save_pretrained(tmp_path / "tok")
    before = everything_below(tmp_path)
    flags = ("--dataset", str(path), "--validation_file", str(path))
    with pytest.raises(UserError, match=message):
        prepare_with(tiny_arguments, *flags, "--tokenizer", str(tmp_path / "tok"))
    assert everything_below(tmp_path) == before


def test_a_dataset_of_any_name_has_a_prepared_folder(tiny_arguments: Parse, tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120 + ".jsonl")
    path.write_text('{"text": "A cat sat on a mat in the sun."}\n' * 200)
    flags = ("--dataset", str(path), "--validation_file", str(path), "--vocab_size", "265")
    assert prepare_with(tiny_arguments, *flags).manifest.split("train").stories_kept == 200


@pytest.mark.parametrize("place", ["/dev/null/here", "x" * 300, "~no-such-user/here"])
def test_a_prepared_dir_that_cannot_be_written_is_an_error(
    tiny_arguments: Parse, place: str
) -> None:
    with pytest.raises(UserError, match=f"prepared_dir: .*{place}"):
        prepare_with(tiny_arguments, "--prepared_dir", place)


def test_the_manifest_is_json_with_all_counts(tiny_arguments: Parse) -> None:
    prepared = prepare_with(tiny_arguments)
    manifest = json.loads((prepared.path / "manifest.json").read_text())
    toy = manifest["train"]["source"]["toy"]
    assert toy == {"stories": 300, "seed": 0, "format": TOY_FORMAT}
    assert manifest["dtype"] == "uint16"
    kept = manifest["train"]["stories_kept"] + manifest["validation"]["stories_kept"]
    assert kept == 300
    assert str(prepared.path) in describe_rows_on_disk(prepared)
    assert f"{manifest['train']['tokens_in']:,}" in describe_rows_on_disk(prepared)


def real_text(shared: Path) -> tuple[str, ...]:
    return (
        *("--dataset", str(shared / "data/tinystories"), "--context_length", "64"),
        *("--tokenizer", str(shared / "data/gpt-neo-tokenizer"), "--vocab_size", "50257"),
    )


def test_no_token_of_the_real_sample_is_lost(tiny_arguments: Parse, shared: Path) -> None:
    prepared = prepare_with(tiny_arguments, *real_text(shared))
    train, validation = prepared.manifest.split("train"), prepared.manifest.validation
    # 2,712,592 and 82,100 tokens without the separators, one of which follows each story.
    assert (train.stories_read, train.tokens_in) == (13_321, 2_712_592 + 13_321)
    assert (validation.stories_read, validation.tokens_in) == (415, 82_100 + 415)
    for name, counts in (("train", train), ("validation", validation)):
        assert counts.tokens_in == counts.tokens_out + counts.tokens_dropped
        assert counts.tokens_dropped == len(counts.tail) < 64
        stream = token_stream(prepared, name)
        assert len(stream) == counts.tokens_in
        assert (stream == prepared.tokenizer.eos_token_id).sum() == counts.stories_kept
        text = prepared.tokenizer.decode(stream[:2000])
        source = (shared / f"data/tinystories/TinyStories-{name[:5]}.txt").read_text()
        assert text.startswith(source.strip()[:200])


def test_the_real_rows_do_not_depend_on_processes_batches_or_threads(
    tiny_arguments: Parse, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_two = tmp_path / "by-two"
    flags = ("--config", str(tmp_path / "tiny.yaml"), *real_text(shared))
    done = run_forked(
        tmp_path, prepare_rows, *flags, "--prepared_dir", str(by_two), num_processes=2
    )
    assert done.returncode == 0, done.stderr
    (folder,) = by_two.iterdir()
    found = rows_of(folder)
    monkeypatch.setattr(data_module, "STORIES_PER_BATCH", 7)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert found == rows_of(prepare_with(tiny_arguments, *real_text(shared)).path)
    assert len(found[0]) > 2 * 2_700_000, "all of the real text, two bytes per token"


def prepare_rows(*flags: str) -> None:
    arguments = parse_arguments(list(flags))
    prepare(arguments.data, arguments.model.vocab_size, quiet=True)


def rows_of(folder: Path) -> list[bytes]:
    return [rows_file(folder, split).read_bytes() for split in ("train", "validation")]
