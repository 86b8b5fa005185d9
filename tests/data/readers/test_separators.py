"""Text files are divided into stories at a separator."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.test_formats import SOURCE, Parse, read
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.readers.text_files import read_text
from tinystories_hf.evaluation.validation import read_validation

LINES = [f"Story number {n} ends here." for n in range(600)]


@pytest.mark.parametrize(
    ("typed", "divided"),
    [(r"\n", "\n"), ("\n", "\n"), (r"\n\n", "\n\n"), ("</s>", "</s>"), (r"\n%%\n", "\n%%\n"),
     (r"\t", "\t"), (r"\\", "\\"), ("\r\n", "\r\n")],
)  # fmt: skip
def test_a_text_is_divided_by_story_separator(
    tiny_arguments: Parse, tmp_path: Path, typed: str, divided: str
) -> None:
    path = tmp_path / "s.txt"
    path.write_bytes(divided.join(LINES).encode())
    assert read(tiny_arguments, path, "--story_separator", typed) == LINES
    usual = open_corpus(tiny_arguments("--dataset", str(path)).data).train.identity
    other = tiny_arguments("--dataset", str(path), "--story_separator", typed).data
    assert open_corpus(other).train.identity != usual, "part of the fingerprint"


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("\n".join(LINES), r"perhaps '\\n' \(600 lines\)"),
        ("\n\n".join(LINES), r"perhaps '\\n\\n' \(599 blank lines\) or '\\n'"),
        ("</s>\n".join(LINES), "perhaps '</s>', which occurs 599 times"),
        (" ".join(LINES), r"put <\|endoftext\|> after each story"),
    ],
)
def test_a_long_text_without_separators_is_refused_with_a_suggestion(
    tiny_arguments: Parse, tmp_path: Path, content: str, hint: str
) -> None:
    path = tmp_path / "s.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"without <\|endoftext\|>.*--story_separator, {hint}"
                       if "perhaps" in hint else hint):  # fmt: skip
        read(tiny_arguments, path)
    with pytest.raises(UserError, match=r"without \\n\\t, the separator"):
        read(tiny_arguments, path, "--story_separator", r"\n\t")
    path.write_text(content[:5000], encoding="utf-8")
    assert len(read(tiny_arguments, path)) == 1, "one story may be that long"
    path.write_text(content + "<|endoftext|>", encoding="utf-8")
    assert len(read(tiny_arguments, path)) == 1, "so may one that is ended"


def test_an_empty_separator_is_refused(tiny_arguments: Parse) -> None:
    with pytest.raises(UserError, match="story_separator must not be empty"):
        tiny_arguments("--story_separator", "")


def test_reading_text_reports_the_progress_of_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_bytes(SOURCE)
    seen: list[Any] = []
    assert len(list(read_text(path, advance=seen.append))) == 50
    assert sum(seen) == len(SOURCE)


def test_an_evaluation_reads_text_as_preparation_does(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    path = tmp_path / "s.txt.gz"
    path.write_bytes(gzip.compress("\n".join(LINES).encode()))
    flags = ("--dataset", str(path), "--validation_file", str(path), "--story_separator", r"\n")
    validation = read_validation(tiny_arguments(*flags).data)
    assert validation.texts == LINES
    assert validation.in_training is not None
    assert validation.in_training.all()
