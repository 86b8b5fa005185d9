from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState
from transformers import TrainingArguments as TrainerArguments

from tinystories_hf.core.run_record import SAMPLES_FILE
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.generation.generate import Story
from tinystories_hf.training.callbacks import ConsoleLog, EvaluateAtEnd, StorySamples, _quoted
from tinystories_hf.training.train import shows_live_line


@pytest.fixture
def trainer_arguments(tmp_path: Path) -> TrainerArguments:
    return TrainerArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def state(step: int, main: bool = True) -> TrainerState:
    return TrainerState(global_step=step, max_steps=100, is_world_process_zero=main)


def test_an_evaluation_follows_the_last_step_only(trainer_arguments: TrainerArguments) -> None:
    for step, expected in ((99, False), (100, True)):
        control = TrainerControl()
        EvaluateAtEnd().on_step_end(trainer_arguments, state(step), control)
        assert control.should_evaluate is expected


def test_a_resumed_run_removes_the_samples_that_it_will_write_again(
    trainer_arguments: TrainerArguments, tmp_path: Path
) -> None:
    samples = StorySamples(train_tokenizer(toy_stories(200), 300, 64), ["Tom"], 0)
    samples.on_train_begin(trainer_arguments, state(0), TrainerControl())
    path = tmp_path / SAMPLES_FILE
    begun = path.read_text()
    assert begun.startswith("# Samples")
    path.write_text(begun + "\n## Step 10\n\n> ten\n\n## Step 20\n\n> twenty\n")
    samples.on_train_begin(trainer_arguments, state(10), TrainerControl())
    assert path.read_text() == begun + "\n## Step 10\n\n> ten\n"
    samples.on_train_begin(trainer_arguments, state(0), TrainerControl())
    assert path.read_text() == begun


def test_only_the_main_process_writes(
    trainer_arguments: TrainerArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = StorySamples(train_tokenizer(toy_stories(200), 300, 64), ["Tom"], 0)
    samples.on_train_begin(trainer_arguments, state(0, main=False), TrainerControl())
    samples.on_evaluate(trainer_arguments, state(5, main=False), TrainerControl(), model=None)
    log = {"loss": 1.0, "learning_rate": 0.1}
    ConsoleLog().on_log(trainer_arguments, state(5, main=False), TrainerControl(), logs=log)
    assert not (tmp_path / SAMPLES_FILE).exists()
    assert capsys.readouterr().out == ""


def test_log_lines_are_readable(
    trainer_arguments: TrainerArguments, capsys: pytest.CaptureFixture[str]
) -> None:
    log = {
        "loss": 4.5,
        "learning_rate": 5e-4,
        "tokens_seen": 1_250_000,
        "tokens_per_second": 2500.4,
        "seconds_per_step": 2.0,
    }
    ConsoleLog().on_log(trainer_arguments, state(40), TrainerControl(), logs=log)
    ConsoleLog().on_log(trainer_arguments, state(40), TrainerControl(), logs={"eval_loss": 4.25})
    ConsoleLog().on_log(trainer_arguments, state(40), TrainerControl(), logs={"train_loss": 1.0})
    assert capsys.readouterr().out.splitlines() == [
        "step  40/100  loss 4.5000  lr 5.00e-04  1.2M tokens  2,500 tokens/s  0:02:00 left",
        "step  40/100  validation loss 4.2500",
    ]


def test_a_terminal_shows_one_live_line_and_the_evaluations(
    trainer_arguments: TrainerArguments, capsys: pytest.CaptureFixture[str]
) -> None:
    console = ConsoleLog(live=True)
    console.on_train_begin(trainer_arguments, state(39), TrainerControl())
    console.on_step_end(trainer_arguments, state(40), TrainerControl())
    log = {"loss": 4.5, "learning_rate": 5e-4, "tokens_seen": 9, "tokens_per_second": 2500.4,
           "seconds_per_step": 2.0}  # fmt: skip
    console.on_log(trainer_arguments, state(40), TrainerControl(), logs=log)
    console.on_log(trainer_arguments, state(40), TrainerControl(), logs={"eval_loss": 4.25})
    console.on_train_end(trainer_arguments, state(40), TrainerControl())
    found = capsys.readouterr()
    assert found.out == "step  40/100  validation loss 4.2500\n"
    last = found.err.rsplit("\r", 1)[-1]
    assert last.startswith("training:  40%|")
    assert last.rstrip().endswith("loss 4.5000, 2,500 tokens/s]")


@pytest.mark.parametrize(
    ("terminal", "disable_tqdm", "live"),
    [(True, None, True), (False, None, False), (True, True, False), (False, False, True)],
)
def test_the_line_is_live_on_a_terminal_unless_the_settings_decide(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, disable_tqdm: bool | None, live: bool
) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    assert shows_live_line(disable_tqdm) is live


def test_a_sample_is_a_quotation_and_shows_where_it_was_cut_off() -> None:
    story = Story("Once", " there was.\n\nThe end", ended=False)
    assert _quoted(story) == "> **Once** there was.\n>\n> The end […]\n"
