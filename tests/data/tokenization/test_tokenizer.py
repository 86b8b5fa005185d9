from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import StoredRepository
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.splits import END_OF_TEXT
from tinystories_hf.data.tokenization.tokenizer import (
    load_tokenizer,
    merges_sha256,
    train_tokenizer,
    vocab_sha256,
)
from tinystories_hf.data.toy import toy_stories

RunCode = Callable[..., tuple[int, str, str]]
Parse = Callable[..., Arguments]
# The hashes of the files published with GPT-2, which GPT-Neo also uses.
VOCAB_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tokenizer of 300 entries."""
    train_tokenizer(toy_stories(200), 300, 64).save_pretrained(tmp_path / "tok")
    return tmp_path / "tok"


def test_a_trained_tokenizer_has_the_given_size_and_special_tokens() -> None:
    tokenizer = train_tokenizer(toy_stories(200), 300, 64)
    assert len(tokenizer) == 300
    assert tokenizer.is_fast
    marks = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    assert marks == {END_OF_TEXT}
    assert tokenizer.model_max_length == 64


def test_a_trained_tokenizer_round_trips_any_text() -> None:
    tokenizer = train_tokenizer(toy_stories(200), 300, 64)
    text = " Zoë said: “Ünïcode 🙂”\n\n\ttab  two spaces "
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer(f"a{END_OF_TEXT}b").input_ids.count(tokenizer.eos_token_id) == 1


def test_training_a_tokenizer_twice_gives_the_same() -> None:
    first, second = (train_tokenizer(toy_stories(500), 400, 64) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_a_vocabulary_that_the_text_does_not_support_is_an_error() -> None:
    with pytest.raises(UserError, match="lower vocab_size or give more text"):
        train_tokenizer(["a b c"], 400, 64)
    with pytest.raises(UserError, match="too small for a byte-level BPE"):
        train_tokenizer(["a b c"], 100, 64)
    with pytest.raises(UserError, match="more than any text supports"):
        train_tokenizer(["a b c"], 2**40, 64)


def test_a_size_that_is_not_the_models_vocabulary_is_an_error(
    tiny_arguments: Parse, folder: Path
) -> None:
    data = tiny_arguments("--tokenizer", str(folder)).data
    assert len(load_tokenizer(data, 300)) == 300
    with pytest.raises(UserError, match="has 300 entries but vocab_size is 50257; set vocab_size"):
        load_tokenizer(data, 50257)


def test_a_tokenizer_without_the_eos_token_is_an_error(tiny_arguments: Parse, folder: Path) -> None:
    for path in folder.iterdir():
        path.write_text(path.read_text().replace(END_OF_TEXT, "<end>"))
    with pytest.raises(UserError, match="no special token"):
        load_tokenizer(tiny_arguments("--tokenizer", str(folder)).data, 300)


@pytest.mark.parametrize("content", [None, "{}", "not json", "null", '{"added_tokens": 3}'])
def test_a_folder_without_a_tokenizer_is_an_error(
    tiny_arguments: Parse, tmp_path: Path, content: str | None
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    if content is not None:
        (empty / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer: .*empty"):
        load_tokenizer(tiny_arguments("--tokenizer", str(empty)).data, 300)


def test_a_pinned_hash_is_compared_with_the_content(tiny_arguments: Parse, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = ("--tokenizer", str(folder), "--tokenizer_vocab_sha256", vocab_sha256(tokenizer))
    load_tokenizer(tiny_arguments(*right).data, 300)
    wrong = ("--tokenizer", str(folder), "--tokenizer_merges_sha256", "0" * 64)
    with pytest.raises(UserError, match=f"has sha256 {merges_sha256(tokenizer)}"):
        load_tokenizer(tiny_arguments(*wrong).data, 300)


def test_the_real_tokenizer_has_the_pinned_content(tiny_arguments: Parse, shared: Path) -> None:
    path = str(shared / "data/gpt-neo-tokenizer")
    data = tiny_arguments("--tokenizer", path).data
    tokenizer = load_tokenizer(data, 50257)
    assert (vocab_sha256(tokenizer), merges_sha256(tokenizer)) == (VOCAB_SHA256, MERGES_SHA256)


def test_the_content_hash_does_not_depend_on_how_a_repository_stores_it(
    tiny_arguments: Parse, shared: Path, tmp_path: Path
) -> None:
    data = tiny_arguments("--tokenizer", str(shared / "data/gpt-neo-tokenizer")).data
    load_tokenizer(data, 50257).save_pretrained(tmp_path / "as-one-file")
    again = AutoTokenizer.from_pretrained(tmp_path / "as-one-file")
    assert (vocab_sha256(again), merges_sha256(again)) == (VOCAB_SHA256, MERGES_SHA256)


LOAD = """
import sys
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.core.script import report_user_errors
from tinystories_hf.data.tokenization.tokenizer import load_tokenizer
with report_user_errors():
    print(len(load_tokenizer(parse_arguments(sys.argv[1:]).data, 300)))
"""


def test_a_tokenizer_is_downloaded_once_and_then_cached(
    hub: LoopbackHub, folder: Path, run_code: RunCode, launch_code: RunCode
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories["models", "me/tok"] = StoredRepository(files)
    code, out, err = run_code(LOAD, "--tokenizer", "me/tok", HF_ENDPOINT=hub.url)
    assert (code, out.strip()) == (0, "300"), err
    code, out, err = launch_code(LOAD, "--tokenizer", "me/tok", HF_HUB_OFFLINE="1")
    assert (code, out.strip()) == (0, "300"), err
    code, _, err = run_code(LOAD, "--tokenizer", "me/missing", HF_ENDPOINT=hub.url)
    assert code == 2
    assert "me/missing is neither a local path nor a repository on" in err


def test_the_saved_folder_loads_in_transformers(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == END_OF_TEXT
