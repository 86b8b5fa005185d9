"""Digests of prepared rows: a test fails if rows change without a new `ROWS_FORMAT`.

The tokenizer is built by hand (byte-level, no merges), so that the digests do not depend on how a
library trains one. They cover the rows, the remaining tokens, all counts and the validation
stories, but not the bytes of the Arrow files, which another version of Arrow may write
differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.properties.test_readers import written
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.data.manifest import STORIES_FOLDER, PreparedData
from tinystories_hf.data.prepare import ROWS_FORMAT, prepare
from tinystories_hf.data.tokenization.saved_tokenizer import story_tokenizer

Parse = Callable[..., Arguments]

STORIES = [f'Story {n}: “Zoé” said, "Don\'t!"\n\nShe ran home. ' * (n % 5 + 1) for n in range(120)]
STORIES += ["Ben saw a cat.", "", "  ", "Ben saw a cat. ", "He said â€œHi.â€\x9d", "Ben saw a cat."]
VALIDATION = ["Ben saw a cat.", *(f"Story {n}, another one, ended. " * 3 for n in range(9))]
CLEANING = ("--drop_empty", "--repair_mojibake", "--drop_duplicates", "--drop_validation_overlap")
NULL = b'{"text": null}\n'
HELD_OUT = "30d39fc021817b7dfb8e7b1d171d999d18dd43410d8738e21b8e19f48346fb0a"
WHY = "prepared rows changed: raise ROWS_FORMAT in data/prepare.py, and update the digest here"


def byte_tokenizer(folder: Path) -> tuple[str, ...]:
    """Save a tokenizer of all bytes and no merges, and return the flags that choose it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.add_special_tokens(["<|endoftext|>"])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    story_tokenizer(backend, "<|endoftext|>", 64).save_pretrained(folder)
    return ("--tokenizer", str(folder), "--vocab_size", str(len(vocabulary)))


def digest(prepared: PreparedData) -> str:
    """Return a hash of all that a prepared folder holds besides names, versions and seconds."""
    found = hashlib.sha256()
    for name in ("train", "validation"):
        rows = np.array(prepared.rows(name).with_format("numpy")["input_ids"])
        found.update(f"{name} {rows.dtype} {rows.shape}".encode())
        found.update(rows.tobytes())
        counts = vars(prepared.manifest.split(name)).copy()
        del counts["source"], counts["file_bytes"]
        found.update(json.dumps(counts, sort_keys=True).encode())
    stories = parquet.read_table(prepared.path / STORIES_FOLDER).to_pydict()
    found.update(json.dumps(stories, sort_keys=True).encode())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("train", "flags", "expected"),
    [
        *((f"s{kind}", (), HELD_OUT) for kind in (".txt", ".jsonl", ".csv", ".parquet")),
        (
            "s.jsonl",
            ("--context_length", "16"),
            "1c21f2c66e142d491ed635833ef81372f94cc7caa969791269df977b974c0ab5",
        ),
        (
            "s.jsonl",
            (*CLEANING, "--validation_share", "0.2"),
            "f96685c6ea10cc7c11d2a5128cf44312409e99fc9a1de24c24b094c9200e80d7",
        ),
        (
            "s.jsonl",
            (*CLEANING, "--validation_file", "v.txt"),
            "1d33e351acc9c086e66e7b48cbeaf67d643e89053d66576255427e08529e9994",
        ),
        (
            "s.jsonl",
            ("--drop_null", "--validation_file", "v.txt"),
            "e43d0760a48a3555f92972c4a5b6408ecf206f2c45313777baa361e45b32b0fa",
        ),
        (
            "s.txt",
            ("--story_separator", r"\n\n", "--validation_file", "v.txt"),
            "d203cd1f0f3574dbfe6cf4a545af0dd1cbc898b5f80be02e1096300943b478b6",
        ),
    ],
)
def test_the_rows_of_the_same_text_and_settings_are_the_same(
    tiny_arguments: Parse,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: str,
    flags: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    content = written(Path(train).suffix, STORIES)
    Path(train).write_bytes(content + NULL * 3 if "--drop_null" in flags else content)
    Path("v.txt").write_bytes(written(".txt", VALIDATION))
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    arguments = tiny_arguments("--dataset", train, *tokenizer, *flags)
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    assert (ROWS_FORMAT, digest(prepared)) == (2, expected), WHY
