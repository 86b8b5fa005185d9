from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from tests.data.test_golden_rows import byte_tokenizer
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.packing import PackedRows, RowWriter, row_dtype
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.tokenization.tokenize import WordTokenizer
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.data.training_rows import TrainingRows, training_rows


@pytest.mark.parametrize("seed", range(20))
def test_no_token_is_lost_and_the_file_does_not_depend_on_the_chunks_written(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    length = draw.randrange(2, 40)
    stream = np.array([draw.randrange(60_000) for _ in range(draw.randrange(1, 3000))])
    monkeypatch.setattr(RowWriter, "TOKENS_PER_BLOCK", draw.choice([1, 7, 500, 10_000]))
    files = []
    for name, longest in (("a", 2), ("b", 200), ("c", 4000)):
        path = tmp_path / f"{name}.arrow"
        with RowWriter(path, length, 60_000) as writer:
            position = 0
            while position < len(stream):
                step = draw.randrange(1, longest)
                writer.write(stream[position : position + step])
                position += step
        rows = datasets.Dataset.from_file(str(path))
        out = [token for row in rows["input_ids"] for token in row]
        assert out + writer.tail.tolist() == stream.tolist()
        assert len(writer.tail) < length
        assert (writer.tokens_in, writer.rows) == (len(stream), len(rows))
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]


def test_ids_are_uint16_if_the_vocabulary_fits() -> None:
    assert row_dtype(50_257).itemsize == 2
    assert row_dtype(2**16).itemsize == 2
    assert row_dtype(2**16 + 1).itemsize == 4


def test_training_rows_are_memory_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowWriter, "TOKENS_PER_BLOCK", 60)
    stream = np.random.default_rng(0).integers(0, 60_000, 1_234)
    with RowWriter(tmp_path / "rows.arrow", 10, 60_000) as writer:
        writer.write(stream)
    dataset = datasets.Dataset.from_file(str(tmp_path / "rows.arrow"))
    rows = PackedRows(dataset)
    assert len(rows) == len(dataset) == 123
    assert rows[0].dtype == np.uint16
    for row in (0, 5, 6, 59, 122):
        assert rows[row].tolist() == dataset[row]["input_ids"]
        assert not rows[row].flags.owndata
    several = rows.__getitems__([122, 0, 6])
    assert [ids.tolist() for ids in several] == [dataset[row]["input_ids"] for row in (122, 0, 6)]
    assert len(PackedRows(dataset.select(range(7)))) == 7
    with pytest.raises(IndexError):
        rows[123]


def test_each_story_ends_with_one_eos(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(toy_stories(50), 300, 64)
    stream = WordTokenizer(tokenizer)(["A cat.", "", "A dog."])
    assert np.count_nonzero(stream == tokenizer.eos_token_id) == 3
    assert stream[-1] == tokenizer.eos_token_id
    with RowWriter(tmp_path / "rows.arrow", 4, 300) as writer:
        writer.write(stream)
    rows = datasets.Dataset.from_file(str(tmp_path / "rows.arrow"))["input_ids"]
    assert np.concatenate([np.array(rows).reshape(-1), writer.tail]).tolist() == stream.tolist()


@pytest.fixture
def rows(tiny_arguments: Callable[..., Arguments], tmp_path: Path) -> Callable[..., TrainingRows]:
    """Return a function that returns the training rows of the toy corpus."""
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")

    def open_rows(*flags: str) -> TrainingRows:
        arguments = tiny_arguments(*tokenizer, "--max_steps", "1", *flags)
        prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
        return training_rows(prepared, arguments.data, 0)

    return open_rows


def test_prepared_rows_answer_what_a_run_asks(rows: Callable[..., TrainingRows]) -> None:
    found = rows()
    count = found.weight_settings["training_rows"]
    assert found.describe().startswith(f"{count:,} x 64 tokens = {64 * count:,} tokens, from /")
    assert (found.has_epochs, found.reread_on_resume) == (True, False)
    found.check_one_step(count)
    with pytest.raises(UserError, match=f"{count + 1} exceeds the {count} training rows"):
        found.check_one_step(count + 1)


def test_streamed_rows_answer_what_a_run_asks(
    rows: Callable[..., TrainingRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rows("--streaming", "--shuffle_buffer", "1234")
    assert found.weight_settings == {"streaming": True, "shuffle_buffer": 1234}
    assert found.describe() == "64 tokens each, streamed from toy, shuffle buffer of 1,234 rows"
    assert (found.has_epochs, found.reread_on_resume) == (False, True)
    found.check_one_step(10**9)
    empty = rows("--streaming", "--context_length", "64")
    monkeypatch.setattr(empty, "_blocks", lambda _: iter(()))
    with pytest.raises(UserError, match="fewer than one row"):
        empty.check_one_step(1)
    monkeypatch.setenv("RANK", "1")
    empty.check_one_step(1)
