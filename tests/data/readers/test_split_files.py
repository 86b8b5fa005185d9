"""Which files of a folder are training, which are validation, and the notes on the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from tests.data.test_corpus import parquet
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.console import print_note_once
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.corpus import open_corpus

Parse = Callable[..., Arguments]


@pytest.fixture(autouse=True)
def no_note_has_been_said() -> None:
    """Reset the notes, which a process prints only once."""
    print_note_once.cache_clear()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return an empty folder."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


def write(folder: Path, *names: str) -> None:
    """Write files whose only story is their own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            path.write_bytes(parquet([name]))
        elif ".json" in name:
            path.write_text(json.dumps([{"text": name}]), encoding="utf-8")
        else:
            path.write_text(name, encoding="utf-8")


def splits(parse: Parse, dataset: Path | str, *flags: str) -> tuple[list[str], list[str]]:
    """Return the files of both splits; held-out stories belong to the training files."""
    found = open_corpus(parse("--dataset", str(dataset), *flags).data)
    if "held_out_share" in found.train.identity:
        both = [*found.train.read(), *found.validation.read()]
        return sorted(str(story) for story in both), []
    train, validation = (list(map(str, part.read())) for part in (found.train, found.validation))
    return train, validation


def test_split_keywords_equal_those_of_datasets() -> None:
    from datasets.data_files import SPLIT_KEYWORDS

    from tinystories_hf.data.readers.split_files import KEYWORDS

    assert {str(split): set(words) for split, words in SPLIT_KEYWORDS.items()} == KEYWORDS


@pytest.mark.parametrize("word", ["dev", "val", "valid", "validation", "Valid", "my-dev-2"])
def test_validation_files_have_any_keyword_of_datasets_and_other_files_are_listed(
    tiny_arguments: Parse, corpus: Path, capfd: pytest.CaptureFixture[str], word: str
) -> None:
    write(corpus, "train.txt", f"{word}.txt", "test.txt", "notes.md", ".hidden.txt")
    assert splits(tiny_arguments, corpus) == (["train.txt"], [f"{word}.txt"])
    assert (
        capfd.readouterr().err
        == f"note: files in {corpus} that are not read: notes.md, test.txt (test)\n"
    )


def test_a_folder_without_validation_holds_out_training_stories_and_not_the_test_split(
    tiny_arguments: Parse, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(corpus, "train/a.txt", "train/b.txt", "eval.txt")
    assert splits(tiny_arguments, corpus) == (["train/a.txt", "train/b.txt"], [])
    assert "eval.txt (test)" in capfd.readouterr().err


NUMBERED = (
    "train-{n:05}-of-00004.parquet",
    "data/train-{n:05}-of-00004-2d5a1467fff1081{n}.parquet",
    "train-{n}.parquet",
    "deep/er/train_{n:02}.parquet",
    "train{n}.json",
    "data{n:02}.json",
    "{n:03}.txt",
    "train/part.{n}.parquet",
    "{n}_train.txt",
)


@pytest.mark.parametrize("name", NUMBERED)
def test_all_shards_of_a_split_are_read_with_any_numbering(
    tiny_arguments: Parse, corpus: Path, name: str
) -> None:
    names = [name.format(n=n) for n in range(4)]
    write(corpus, *names)
    assert splits(tiny_arguments, corpus)[0] == names


def test_shards_are_read_in_the_order_of_their_numbers(tiny_arguments: Parse, corpus: Path) -> None:
    names = [f"train-{number}.txt" for number in range(1, 13)]
    write(corpus, *names, "valid.txt")
    assert splits(tiny_arguments, corpus) == (names, ["valid.txt"])


def test_a_clone_of_tinystories_is_read_as_datasets_reads_it(
    tiny_arguments: Parse, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards = [f"data/train-0000{n}-of-00004-2d5a1467fff1081b.parquet" for n in range(4)]
    validation = "data/validation-00000-of-00001-869c898b519ad725.parquet"
    second = ("TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt")
    write(corpus, *shards, validation, *second, "README.md")
    write(corpus, "TinyStories-train.txt", "TinyStories-valid.txt")
    assert splits(tiny_arguments, corpus) == (shards, [validation])
    assert all(name in capfd.readouterr().err for name in second[:1])
    asked = datasets.load_dataset("parquet", data_dir=str(corpus / "data"))
    assert sorted(asked["train"]["text"]) == shards
    files = ("--train_file", second[0], "--validation_file", second[1])
    assert splits(tiny_arguments, corpus, *files) == ([second[0]], [second[1]])
    with pytest.raises(UserError, match=r"several files .* set validation_file to a name"):
        splits(tiny_arguments, corpus, *files[:2])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train-00000-of-00003.txt", "train-00002-of-00003.txt"), "some shards are missing"),
        (("train-00001-of-00002.txt",), "some shards are missing.*train-\\*"),
        (("train-0.txt", "train-2.txt"), "some shards are missing"),
        (("train-1M.txt", "train-2M.txt"), "several files"),
        (("train-v1.txt", "train-v2.txt"), "several files"),
        (("train.txt", "train.jsonl"), "several files"),
        (("a/train.txt", "b/train.txt"), "several files"),
        (("one.txt", "two.txt"), "several files"),
        (("valid.txt", "notes.md"), "no file in .* has `train` in its name"),
        (("train-valid.txt",), "several files|no file in"),
    ],
)
def test_a_folder_with_ambiguous_or_missing_files_is_refused(
    tiny_arguments: Parse, corpus: Path, names: tuple[str, ...], message: str
) -> None:
    write(corpus, *names)
    with pytest.raises(UserError, match=message):
        splits(tiny_arguments, corpus)


@pytest.mark.parametrize(
    ("dataset", "flags", "train"),
    [
        ("", ("--train_file", "train-*.txt"), ["train-0.txt", "train-2.txt"]),
        ("", ("--train_file", "**/[ab].txt"), ["more/a.txt", "more/b.txt"]),
        ("train-*.txt", (), ["train-0.txt", "train-2.txt"]),
        ("*.t?t", (), ["train-0.txt", "train-2.txt"]),
        ("more/*", (), ["more/a.txt", "more/b.txt"]),
    ],
)
def test_a_pattern_names_files(
    tiny_arguments: Parse, corpus: Path, dataset: str, flags: tuple[str, ...], train: list[str]
) -> None:
    write(corpus, "train-0.txt", "train-2.txt", "valid.txt", "test.txt", "more/a.txt")
    write(corpus, "more/b.txt")
    if dataset == "*.t?t":
        with pytest.raises(UserError, match="some shards are missing"):
            splits(tiny_arguments, corpus / dataset)
        write(corpus, "train-1.txt")
        train.insert(1, "train-1.txt")
        assert splits(tiny_arguments, corpus / dataset) == (train, ["valid.txt"])
        return
    valid = ("--validation_file", "valid*" if flags else str(corpus / "v*d.txt"))
    assert splits(tiny_arguments, corpus / dataset, *flags, *valid) == (train, ["valid.txt"])


def test_files_in_subfolders_are_not_mixed_in(tiny_arguments: Parse, corpus: Path) -> None:
    deeper = ("runs/xs/train_results.json", "runs/xs/eval_results.json", "prepared/valid.txt")
    write(corpus, "train.txt", "dataset_info.json", *deeper)
    assert splits(tiny_arguments, corpus) == (["train.txt"], [])
    write(corpus, "valid.txt")
    assert splits(tiny_arguments, corpus) == (["train.txt"], ["valid.txt"])
    (corpus / "train.txt").rename(corpus / "stories.txt")
    (corpus / "valid.txt").unlink()
    assert splits(tiny_arguments, corpus) == (["train.txt"], []), "the only file"


@pytest.mark.parametrize(
    ("dataset", "flags"),
    [
        ("", ("--train_file", "*.txt", "--validation_file", "b.txt")),
        ("", ("--train_file", "*.txt")),
        ("*.txt", ("--validation_file", "b.txt")),
    ],
)
def test_a_validation_file_that_also_matches_train_file_is_not_trained_on(
    tiny_arguments: Parse,
    corpus: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    flags: tuple[str, ...],
) -> None:
    monkeypatch.chdir(corpus)
    valid = "b.txt" if "b.txt" in flags else "valid.txt"
    write(corpus, "a.txt", valid, "c.txt")
    assert splits(tiny_arguments, dataset or corpus, *flags) == (["a.txt", "c.txt"], [valid])
    assert f"note: used for validation only: {valid}" in capfd.readouterr().err


def test_a_pattern_that_matches_nothing_is_an_error(tiny_arguments: Parse, corpus: Path) -> None:
    write(corpus, "train.txt")
    with pytest.raises(UserError, match=r"no file matches .*nothing\*"):
        splits(tiny_arguments, corpus / "nothing*")
    with pytest.raises(UserError, match=r"train_file: no file nothing\*"):
        splits(tiny_arguments, corpus, "--train_file", "nothing*")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (
            "train-00001-of-00002.txt",
            "is one shard of 2 and is read without train-",
        ),
        ("data01.json", "data01.json is one shard and is read without data00.json"),
        ("alone-00000-of-00004.txt", "is one shard of 4 and is read alone; to read all"),
        ("stories.txt", ""),
        ("stories-v2.txt", ""),
    ],
)
def test_reading_one_shard_of_several_prints_a_note(
    tiny_arguments: Parse,
    corpus: Path,
    capfd: pytest.CaptureFixture[str],
    named: str,
    said: str,
) -> None:
    write(corpus, "train-00000-of-00002.txt", "train-00001-of-00002.txt", "data00.json")
    write(corpus, "data01.json", "alone-00000-of-00004.txt", "stories.txt", "stories-v2.txt")
    assert splits(tiny_arguments, corpus / named) == ([named], [])
    assert said in capfd.readouterr().err
    if not said:
        splits(tiny_arguments, corpus, "--train_file", named, "--validation_file", named)
        assert capfd.readouterr().err == ""


def test_an_unreadable_subfolder_is_skipped(
    tiny_arguments: Parse, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    write(corpus, "train.txt", "lost+found/x.txt")
    scandir = os.scandir

    def refuses(path: str) -> object:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    assert splits(tiny_arguments, corpus) == (["train.txt"], [])
