"""Rows of token ids that another tool has saved are read as the stories that they encode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.readers import token_rows
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories

Parse = Callable[..., Arguments]
STORIES = list(toy_stories(90, 4))


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    train_tokenizer(toy_stories(200), 320, 64).save_pretrained(tmp_path / "tok")
    return str(tmp_path / "tok")


def rows_by_another_tool(tokenizer: str, stories: list[str], length: int) -> datasets.Dataset:
    """Concatenate and cut, as run_clm does: attention masks and labels beside the ids."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(tokenizer)
    ids = [token for story in stories for token in [*made(story).input_ids, made.eos_token_id]]
    rows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    return datasets.Dataset.from_dict(
        {"input_ids": rows, "attention_mask": [[1] * length] * len(rows), "labels": rows}
    )


def test_rows_of_another_tool_give_the_rows_of_their_text(
    tiny_arguments: Parse, tokenizer: str, tmp_path: Path
) -> None:
    train = rows_by_another_tool(tokenizer, STORIES[:80], 50)
    validation = rows_by_another_tool(tokenizer, STORIES[80:], 50)
    datasets.DatasetDict(train=train, validation=validation).save_to_disk(tmp_path / "ids")
    flags = ("--dataset", str(tmp_path / "ids"), "--tokenizer", tokenizer)
    arguments = tiny_arguments(*flags)
    prepared = prepare(arguments.data, 320, quiet=True)
    stream = np.concatenate(train["input_ids"])
    found = np.concatenate([np.array(row) for row in prepared.rows("train")["input_ids"]])
    assert np.array_equal(found, stream[: len(found)])
    corpus = open_corpus(arguments.data)
    assert list(corpus.train.read())[:79] == STORIES[:79]


def test_a_prepared_folder_is_a_dataset_too(
    tiny_arguments: Parse, tokenizer: str, tmp_path: Path
) -> None:
    first = prepare(tiny_arguments("--tokenizer", tokenizer).data, 320, quiet=True)
    again = ("--dataset", str(first.path), "--tokenizer", tokenizer)
    second = prepare(tiny_arguments(*again).data, 320, quiet=True)
    for split in ("train", "validation"):
        rows = [prepared.rows(split)["input_ids"][:] for prepared in (first, second)]
        assert rows[0][: len(rows[1])] == rows[1]
        assert len(rows[0]) - len(rows[1]) <= 1, "its last story may be cut short"


def test_rows_without_their_tokenizer_are_refused(
    tiny_arguments: Parse, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_by_another_tool(tokenizer, STORIES, 50).save_to_disk(tmp_path / "ids")
    named = ("--dataset", str(tmp_path / "ids"))
    with pytest.raises(UserError, match="has token ids instead of a column 'text'; give"):
        open_corpus(tiny_arguments(*named).data)
    train_tokenizer(toy_stories(200), 300, 64).save_pretrained(tmp_path / "small")
    small = (*named, "--tokenizer", str(tmp_path / "small"), "--vocab_size", "300")
    with pytest.raises(UserError, match=r"has the id 3\d\d, which the tokenizer does not have"):
        prepare(tiny_arguments(*small).data, 300, quiet=True)
    monkeypatch.setattr(token_rows, "LONGEST_STORY", 20)
    with pytest.raises(UserError, match="ids without the id 0 of the EOS token between stories"):
        prepare(tiny_arguments(*named, "--tokenizer", tokenizer).data, 320, quiet=True)


def test_a_column_of_text_comes_first(tokenizer: str, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": STORIES, "input_ids": [[1]] * len(STORIES)})
    rows.save_to_disk(tmp_path / "both")
    data = parse_arguments(["--dataset", str(tmp_path / "both"), "--tokenizer", tokenizer]).data
    corpus = open_corpus(data)
    assert set(corpus.train.read()) | set(corpus.validation.read()) == set(STORIES)
