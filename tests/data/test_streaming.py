"""Streamed rows: their content, their order, and where a resumed run continues."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.support.forked import run_forked, train_forked
from tests.training.test_resume import DROPOUT, AskToStop, continued, log_of, train_here
from tests.training.test_train import losses, train_and_log
from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.core.errors import RunError, Stopped, UserError
from tinystories_hf.data.manifest import (
    SplitManifest,
    StreamedSplit,
    describe_rows_on_disk,
    load_prepared,
    rows_file,
)
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.splits import Split
from tinystories_hf.data.streaming import StreamedRows, shuffled
from tinystories_hf.data.training_rows import training_rows
from tinystories_hf.evaluation.arguments import parse_evaluation_arguments
from tinystories_hf.evaluation.validation import read_validation
from tinystories_hf.training.resume import where_to_start
from tinystories_hf.training.signals import StopRequest

Parse = Callable[..., Arguments]
AUTO = ("--resume_from_checkpoint", "auto")


@pytest.fixture(scope="session")
def tokenizer(trained_run: Path) -> str:
    """Return the folder of a trained tokenizer, which streaming needs."""
    return str(trained_run)


@pytest.fixture
def streaming(tiny_arguments: Parse, tokenizer: str) -> Parse:
    """Return a function that parses the tiny configuration with streaming."""

    def parse(*flags: str) -> Arguments:
        return tiny_arguments("--streaming", "--tokenizer", tokenizer, *flags)

    return parse


def stream_of(
    arguments: Arguments, read: Callable[[], Iterator[str]] | None = None
) -> StreamedRows:
    """Return the streamed rows of the corpus, or of the given stories."""
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    if read is not None:
        prepared = replace(prepared, stream=Split({}, lambda _: read()))
    training = arguments.training
    seed = training.seed if training.data_seed is None else training.data_seed
    rows = training_rows(prepared, arguments.data, seed)
    assert isinstance(rows, StreamedRows)
    return rows


def prepared_rows(arguments: Arguments) -> list[tuple[int, ...]]:
    data = replace(arguments.data, streaming=False)
    prepared = prepare(data, arguments.model.vocab_size, quiet=True)
    return [tuple(row) for row in prepared.rows("train")["input_ids"]]


def taken(rows: Iterator[np.ndarray[Any, Any]], count: int) -> list[tuple[int, ...]]:
    return [tuple(row.tolist()) for row in itertools.islice(rows, count)]


def test_a_pass_has_each_prepared_row_once_and_each_pass_another_order(
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


def test_a_row_is_yielded_at_most_a_buffer_early() -> None:
    rows = [np.array([number]) for number in range(1000)]
    drawn = [int(row[0]) for row in shuffled(rows, 100, np.random.default_rng(0))]
    assert sorted(drawn) == list(range(1000))
    ahead = [number - place for place, number in enumerate(drawn)]
    assert 50 < max(ahead) <= 100
    whole = [int(row[0]) for row in shuffled(rows, 10_000, np.random.default_rng(0))]
    assert max(number - place for place, number in enumerate(whole)) > 900, "all of it is mixed"


def test_a_resumed_run_equals_an_uninterrupted_one_in_every_pass(
    streaming: Parse, tmp_path: Path
) -> None:
    # 8 rows per step: step 3 is in the first pass, step 9 in the second or a later one.
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
        assert log_of(again) == log_of(whole)
        first, second = (
            load_file(tmp_path / name / "checkpoint-20" / "model.safetensors")
            for name in ("whole", f"stopped-{step}")
        )
        assert all(first[name].equal(second[name]) for name in first)
    other = train_here(streaming(*small, "--data_seed", "1", "--output_dir", str(tmp_path / "o")))
    assert log_of(other) != log_of(whole), "the comparison can fail"


def test_two_processes_train_on_the_same_stream_as_one(tmp_path: Path, tokenizer: str) -> None:
    # Two and a half passes, with two accumulation steps.
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
    again = train_forked(tmp_path / "2", *flags, *AUTO, num_processes=2)
    assert "is already finished" in again.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max_steps", "-1"), "a stream has no known length; set max_steps"),
        (("--tokenizer", "train"), "tokenizer `train` would have to read all stories first"),
        (("--drop_duplicates",), "drop_duplicates and drop_validation_overlap keep every"),
        (("--drop_validation_overlap",), "drop_duplicates and drop_validation_overlap keep every"),
        (
            ("--dataloader_num_workers", "1"),
            "worker would read every story; set",
        ),
        (("--shuffle_buffer", "0"), "shuffle_buffer must be positive"),
    ],
)
def test_settings_that_streaming_does_not_support_are_refused(
    streaming: Parse, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        streaming(*flags)


def test_the_prepared_folder_of_a_stream_has_only_validation(
    streaming: Parse, tiny_arguments: Parse, tokenizer: str
) -> None:
    arguments = streaming()
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    whole = prepare(tiny_arguments("--tokenizer", tokenizer).data, 320, quiet=True)
    assert whole.path != prepared.path
    assert not (prepared.path / "train").exists()
    assert rows_file(prepared.path, "validation").read_bytes() == (
        rows_file(whole.path, "validation").read_bytes()
    )
    assert isinstance(whole.manifest.train, SplitManifest)
    assert prepared.manifest.train == StreamedSplit(whole.manifest.train.source)
    assert load_prepared(prepared.path).manifest == prepared.manifest
    for ask in (prepared.rows, prepared.manifest.split):
        with pytest.raises(UserError, match="set streaming to false"):
            ask("train")
    table = describe_rows_on_disk(prepared)
    assert "train is streamed" in table
    assert table.splitlines()[0].split() == ["validation"]


def test_a_run_resumes_only_with_the_same_stream(
    streaming: Parse, tiny_arguments: Parse, tokenizer: str, tmp_path: Path
) -> None:
    small = ("--toy_stories", "50", "--max_steps", "2", "--lr_scheduler_type", "constant")
    train_here(streaming(*small, "--save_steps", "2"))
    continued(streaming(*small, *AUTO), tmp_path / "run")
    with pytest.raises(UserError, match="shuffle_buffer was 10000, is 9"):
        continued(streaming(*small, *AUTO, "--shuffle_buffer", "9"), tmp_path / "run")
    with pytest.raises(UserError, match="streaming was True, is 'not set'"):
        continued(tiny_arguments(*small, *AUTO, "--tokenizer", tokenizer), tmp_path / "run")


@pytest.mark.parametrize("stories", [[], ["", ""], ["Too short for a row."]])
def test_a_text_shorter_than_one_row_is_an_error(streaming: Parse, stories: list[str]) -> None:
    arguments = streaming("--drop_empty")
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    prepared = replace(prepared, stream=Split({}, lambda _: iter(stories)))
    with pytest.raises(UserError, match=r"train split of .* tokens, fewer than one row"):
        training_rows(prepared, arguments.data, 0).check_one_step(8)
    with pytest.raises(RunError, match=r"pass 1 had .* 0 rows;"):
        next(iter(stream_of(arguments, lambda: iter(stories))))


def test_a_text_that_ends_early_or_changes_fails_the_run(streaming: Parse) -> None:
    arguments = streaming("--shuffle_buffer", "5", "--data_seed", "-1")
    stories = [f"Story {number} goes on and on and on." for number in range(100)]

    def broken() -> Iterator[str]:
        yield from stories
        raise UserError("could not reach the Hub")

    with pytest.raises(RunError, match="the Hub; once they can be read, the same command with"):
        taken(iter(stream_of(arguments, broken)), 1000)

    def shorter() -> Iterator[str]:
        yield from stories
        stories.pop()

    with pytest.raises(
        RunError, match=r"pass 2 had 99 stories.* but the first pass had 100 stories"
    ):
        taken(iter(stream_of(arguments, shorter)), 1000)


def test_evaluation_does_not_look_stories_up_in_a_stream(streaming: Parse, tmp_path: Path) -> None:
    data = streaming().data
    assert read_validation(data).in_training is None
    assert read_validation(replace(data, streaming=False)).in_training is not None
    flags = ("--model", str(tmp_path), "--dataset", "toy", "--streaming")
    assert parse_evaluation_arguments([*flags, "--suite", "loss,cloze"]).data.streaming
    with pytest.raises(UserError, match="index of the complete training split, which was streamed"):
        parse_evaluation_arguments([*flags, "--suite", "memorization"])
    also = ("--streaming", "false", "--suite", "stories,memorization")
    assert not parse_evaluation_arguments([*flags[:-1], *also]).data.streaming


def test_an_unreadable_line_fails_the_run_and_keeps_its_checkpoints(
    tiny_config: Path,
    tokenizer: str,
    streaming: Parse,
    tmp_path: Path,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    lines = [json.dumps({"text": f"Story {number} went on. " * 5}) for number in range(900)]
    (tmp_path / "other.jsonl").write_text("\n".join(lines[:10]))
    (tmp_path / "train.jsonl").write_text("\n".join([*lines[:600], "not json", *lines[600:]]))
    done = run_script(
        "train.py",
        *("--config", str(tiny_config), "--dataset", str(tmp_path / "train.jsonl")),
        *("--validation_file", str(tmp_path / "other.jsonl"), "--tokenizer", tokenizer),
        *("--streaming", "--shuffle_buffer", "10", "--max_steps", "1000", "--save_steps", "20"),
    )
    assert done.returncode == 1, done.stderr
    assert "error: training stories: " in done.stderr
    assert "train.jsonl, line 601 is not JSON" in done.stderr
    assert "Traceback" not in done.stderr
    run = tmp_path / "work" / "run"
    assert where_to_start(streaming("--output_dir", str(run), *AUTO).training).checkpoint
    assert json.loads((run / "run.json").read_text())["sessions"][0]["status"] == "failed"


def stop_in(event: str, step: int, flags: list[str]) -> None:
    """Train, and send a signal at the given event and step."""
    stop = StopRequest()
    train_here(parse_arguments(flags), stop, AskToStop(stop, event, step))


@pytest.mark.parametrize("also", [("--streaming",), ()])
def test_a_signal_does_not_wait_for_a_first_step(
    tiny_config: Path, tokenizer: str, tmp_path: Path, also: tuple[str, ...]
) -> None:
    flags = ["--config", str(tiny_config), "--tokenizer", tokenizer, *also]
    flags += ["--prepared_dir", str(tmp_path / "prepared")]
    done = run_forked(tmp_path, stop_in, "on_train_begin", 0, flags)
    assert done.returncode == 75, done.stderr
    assert "stopped: by SIGTERM; the same command" in done.stderr
    assert "step  1/20" not in done.stdout
    done = run_forked(tmp_path, stop_in, "on_step_begin", 0, flags)
    assert "step  1/20" in done.stdout, "from then on it does"
    assert (tmp_path / "run" / "checkpoint-1").exists()


def test_a_signal_during_a_repeated_evaluation_stops_the_run_before_it(
    tiny_arguments: Parse, tiny_config: Path, tmp_path: Path
) -> None:
    few = ("--max_steps", "11", "--save_steps", "11", "--eval_steps", "5")
    train_here(tiny_arguments(*few, "--output_dir", str(tmp_path / "whole")))
    stop = StopRequest()
    with pytest.raises(Stopped):
        train_here(tiny_arguments(*few, *AUTO), stop, AskToStop(stop, "on_step_end", 5))
    places = ["--output_dir", str(tmp_path / "run"), "--prepared_dir", str(tmp_path / "prepared")]
    flags = ["--config", str(tiny_config), *few, *AUTO, *places]
    done = run_forked(tmp_path, stop_in, "on_prediction_step", 5, flags)
    assert done.returncode == 75, done.stderr
    assert done.stdout == ""
    again = train_here(tiny_arguments(*few, *AUTO))
    told = [(tmp_path / name / "samples.md").read_text() for name in ("run", "whole")]
    assert told[0] == told[1]
    assert [entry["step"] for entry in again.state.log_history if "eval_loss" in entry] == [
        5,
        10,
        11,
    ]
