"""Rows that are made while a run trains on them: which, in which order, and where they go on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.conftest import train_tiny
from tests.test_resuming import DROPOUT, AskToStop, train_here, untimed
from tests.test_training import losses, train_and_log
from tinystories_hf.arguments import Arguments
from tinystories_hf.data import prepare
from tinystories_hf.errors import Stopped
from tinystories_hf.stopping import StopRequest
from tinystories_hf.streaming import StreamedRows, shuffled
from tinystories_hf.training import training_rows

Parse = Callable[..., Arguments]
AUTO = ("--resume_from_checkpoint", "auto")


@pytest.fixture(scope="session")
def tokenizer(trained_run: Path) -> str:
    """Return a tokenizer that is made already, as streaming needs."""
    return str(trained_run)


@pytest.fixture
def streaming(tiny_arguments: Parse, tokenizer: str) -> Parse:
    """Return a function that parses the tiny configuration, streamed."""

    def parse(*flags: str) -> Arguments:
        return tiny_arguments("--streaming", "--tokenizer", tokenizer, *flags)

    return parse


def stream_of(arguments: Arguments) -> StreamedRows:
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    rows = training_rows(arguments, prepared)
    assert isinstance(rows, StreamedRows)
    return rows


def prepared_rows(arguments: Arguments) -> list[tuple[int, ...]]:
    data = replace(arguments.data, streaming=False)
    prepared = prepare(data, arguments.model.vocab_size, quiet=True)
    return [tuple(row) for row in prepared.rows("train")["input_ids"]]


def taken(rows: Iterator[np.ndarray[Any, Any]], count: int) -> list[tuple[int, ...]]:
    return [tuple(row.tolist()) for row in itertools.islice(rows, count)]


def test_a_pass_is_each_row_of_the_preparation_once_and_the_next_another_order(
    streaming: Parse,
) -> None:
    arguments = streaming("--shuffle_buffer", "50", "--drop_empty", "--repair_mojibake")
    wanted = prepared_rows(arguments)
    rows = stream_of(arguments)
    stream = iter(rows)
    first, second = taken(stream, len(wanted)), taken(stream, len(wanted))
    assert len(wanted) > 3 * 50
    assert sorted(first) == sorted(second) == sorted(wanted)
    assert first != wanted
    assert first != second
    taken(stream, 1)
    one, two = rows.passes
    assert one == two
    assert one.rows == len(wanted)
    assert one.tokens == 64 * one.rows + one.tokens_dropped
    assert taken(iter(stream_of(arguments)), len(wanted)) == first, "the seed decides"
    other = streaming("--shuffle_buffer", "50", "--drop_empty", "--repair_mojibake", "--seed", "1")
    assert taken(iter(stream_of(other)), len(wanted)) != first


def test_a_row_comes_at_the_earliest_a_buffer_before_its_place() -> None:
    rows = [np.array([number]) for number in range(1000)]
    drawn = [int(row[0]) for row in shuffled(rows, 100, np.random.default_rng(0))]
    assert sorted(drawn) == list(range(1000))
    ahead = [number - place for place, number in enumerate(drawn)]
    assert 50 < max(ahead) <= 100
    whole = [int(row[0]) for row in shuffled(rows, 10_000, np.random.default_rng(0))]
    assert max(number - place for place, number in enumerate(whole)) > 900, "all of it is mixed"


def test_a_resumed_run_is_the_undisturbed_one_in_the_first_pass_and_in_the_second(
    streaming: Parse, tmp_path: Path
) -> None:
    # 8 rows in a step: step 3 lies in the first pass, step 9 in the second or after it.
    small = ("--toy_stories", "16", "--shuffle_buffer", "10", "--logging_steps", "3", *DROPOUT,
             "--per_device_train_batch_size", "4")  # fmt: skip
    whole = train_here(streaming(*small, "--output_dir", str(tmp_path / "whole")))
    passes = whole.train_dataset.passes
    assert passes[0].rows // 8 in range(4, 9), passes
    assert len(passes) >= 2
    for step in (3, 9):
        flags = (*small, "--output_dir", str(tmp_path / f"stopped-{step}"))
        stop = StopRequest()
        with pytest.raises(Stopped):
            train_here(streaming(*flags), stop, AskToStop(stop, "on_step_end", step))
        again = train_here(streaming(*flags, *AUTO))
        assert untimed(again) == untimed(whole)
        first, second = (
            load_file(tmp_path / name / "checkpoint-20" / "model.safetensors")
            for name in ("whole", f"stopped-{step}")
        )
        assert all(first[name].equal(second[name]) for name in first)
    other = train_here(streaming(*small, "--data_seed", "1", "--output_dir", str(tmp_path / "o")))
    assert untimed(other) != untimed(whole), "the comparison can fail"


def test_two_processes_train_on_a_stream_as_one(tmp_path: Path, tokenizer: str) -> None:
    # Two passes and a half, in two steps of accumulation.
    flags = ("--streaming", "--tokenizer", tokenizer, "--toy_stories", "24", "--shuffle_buffer",
             "20", "--per_device_train_batch_size", "2")  # fmt: skip
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        found.append(losses(train_and_log(folder, *flags, num_processes=processes)))
    one, two = found
    assert len(one) == len(two) == 20
    assert max(abs(one[step] - two[step]) for step in one) < 1e-4
    assert one[1] > one[20] + 0.5, "and both learn"
    run = tmp_path / "2" / "run"
    record = json.loads((run / "run.json").read_text())
    assert record["dataset"]["train"].keys() == {"source"}
    card = (run / "README.md").read_text()
    assert "streamed" in card
    assert "epochs" not in card
    assert "verbatim" not in card
    again = train_tiny(tmp_path / "2", *flags, *AUTO, num_processes=2)
    assert "nothing is left to train" in again.stdout
