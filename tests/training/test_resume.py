"""Resume runs that were stopped or damaged, with other processes or with other settings."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

from tests.conftest import untimed
from tests.support.forked import train_forked
from tests.training.test_checkpoints import flip
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import Stopped, UserError
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.training_rows import training_rows
from tinystories_hf.model.modeling import build_model
from tinystories_hf.training.batch import BatchPlan, plan_batch
from tinystories_hf.training.resume import check_same_run, setting_differences, where_to_start
from tinystories_hf.training.signals import StopRequest
from tinystories_hf.training.train import build_trainer, train_steps
from tinystories_hf.training.trainer import StoryTrainer
from tinystories_hf.training.trainer_arguments import build_trainer_arguments

Parse = Callable[..., Arguments]
DROPOUT = ("--attention_dropout", "0.1", "--embed_dropout", "0.1", "--resid_dropout", "0.1")
# A log every third step and a checkpoint every tenth, so that each checkpoint has a running loss.
# Two evaluation batches, so that a stop can come between them.
UNEVEN = (
    *("--logging_steps", "3", "--max_steps", "20", "--per_device_eval_batch_size", "4"),
    *DROPOUT,
)


def trainer_of(arguments: Arguments, stop: StopRequest | None = None) -> StoryTrainer:
    plan = plan_batch(arguments.training, 1)
    settings = build_trainer_arguments(arguments.training, plan)
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    set_seed(arguments.training.seed)
    model = build_model(arguments.model, prepared.tokenizer, arguments.data.context_length)
    Path(arguments.training.output_dir).mkdir(exist_ok=True)
    rows = training_rows(prepared, arguments.data, settings.data_seed)
    return build_trainer(arguments, plan, settings, prepared, rows, model, stop)


def train_here(arguments: Arguments, stop: StopRequest | None = None, *also: Any) -> StoryTrainer:
    trainer = trainer_of(arguments, stop)
    for callback in also:
        trainer.add_callback(callback)
    start = where_to_start(arguments.training)
    train_steps(trainer, start, arguments.data.context_length)
    return trainer


def log_of(trainer: StoryTrainer) -> list[dict[str, Any]]:
    """Return the log without times, and without its summary, which a stopped session lacks."""
    return [entry for entry in untimed(trainer.state.log_history) if "train_loss" not in entry]


class AskToStop(TrainerCallback):
    def __init__(self, stop: StopRequest, event: str, step: int) -> None:
        self.stop, self.step = stop, step
        setattr(self, event, self.look)

    def look(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == self.step:
            self.stop.handle(signal.SIGTERM, None)


STOPS = (
    ("on_step_begin", 4, 5),  # in the middle of a running loss
    ("on_step_end", 10, 10),  # when a checkpoint and an evaluation are due
    ("on_prediction_step", 10, 10),  # in the middle of that evaluation
    ("on_prediction_step", 20, 20),  # in the last one
    ("on_step_end", 20, 20),
)


def test_a_stop_at_any_point_does_not_change_log_samples_or_weights(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    whole = train_here(tiny_arguments(*UNEVEN, "--output_dir", str(tmp_path / "whole")))
    expected = load_file(tmp_path / "whole" / "checkpoint-20" / "model.safetensors")
    for event, step, saved in STOPS:
        run = tmp_path / f"{event}-{step}"
        place = ("--output_dir", str(run), "--resume_from_checkpoint", "auto")
        resumed = tiny_arguments(*UNEVEN, *place)
        stop = StopRequest()
        with pytest.raises(Stopped, match=f"by SIGTERM after step {saved}, "):
            train_here(resumed, stop, AskToStop(stop, event, step))
        again = train_here(resumed)
        assert log_of(again) == log_of(whole), (event, step)
        samples = (tmp_path / "whole" / "samples.md").read_text()
        assert (run / "samples.md").read_text() == samples, (event, step)
        found = load_file(run / "checkpoint-20" / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(found[name].equal(expected[name]) for name in found), (event, step)


class Killed(BaseException):
    """An exception that no code of the run handles."""


class Kill(AskToStop):
    def look(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def test_samples_of_a_postponed_evaluation_appear_once_even_if_the_run_is_killed_then(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    resumed = tiny_arguments(*UNEVEN, "--resume_from_checkpoint", "auto")
    stop = StopRequest()
    with pytest.raises(Stopped):
        train_here(resumed, stop, AskToStop(stop, "on_prediction_step", 10))
    with pytest.raises(Killed):
        train_here(resumed, StopRequest(), Kill(stop, "on_step_end", 12))
    train_here(resumed)
    samples = (tmp_path / "run/samples.md").read_text()
    assert [samples.count(f"## Step {step}\n") for step in (10, 20)] == [1, 1]


def test_a_run_resumes_in_a_later_epoch_and_with_accumulation(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    # Fewer than 10 steps per epoch: step 13 is in the middle of the second.
    few = ("--toy_stories", "60", "--global_batch_size", "32")
    flags = (*UNEVEN, *few, "--per_device_train_batch_size", "16")
    whole = train_here(tiny_arguments(*flags, "--output_dir", str(tmp_path / "whole")))
    resumed = tiny_arguments(*flags, "--resume_from_checkpoint", "auto")
    stop = StopRequest()
    with pytest.raises(Stopped):
        train_here(resumed, stop, AskToStop(stop, "on_step_end", 13))
    again = train_here(resumed)
    assert log_of(again) == log_of(whole)
    assert 1 < next(entry["epoch"] for entry in log_of(whole) if entry["step"] == 12) < 2
    other = train_here(tiny_arguments(*flags, "--seed", "43", "--output_dir", str(tmp_path / "b")))
    assert log_of(other) != log_of(whole), "the comparison can fail"


def test_a_run_may_be_extended_if_its_schedule_does_not_depend_on_its_length(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    constant = (*DROPOUT, "--lr_scheduler_type", "constant")
    whole = train_here(tiny_arguments(*constant, "--output_dir", str(tmp_path / "whole")))
    train_here(tiny_arguments(*constant, "--max_steps", "10"))
    longer = train_here(tiny_arguments(*constant, "--resume_from_checkpoint", "auto"))
    assert log_of(longer) == log_of(whole)


def test_logging_evaluating_and_saving_do_not_change_a_run(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    weights = []
    for every in ("3", "20"):
        run = tmp_path / every
        watched = ("--eval_steps", every, "--logging_steps", every, "--save_steps", every)
        train_here(tiny_arguments(*UNEVEN, *watched, "--output_dir", str(run)))
        weights.append((run / "checkpoint-20" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_data_loader_workers_do_not_change_where_a_run_resumes(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    whole = train_here(tiny_arguments(*UNEVEN, "--output_dir", str(tmp_path / "whole")))
    ahead = tiny_arguments(*UNEVEN, *("--dataloader_num_workers", "1"), "--resume_from_checkpoint",
                           "auto")  # fmt: skip
    stop = StopRequest()
    with pytest.raises(Stopped):
        train_here(ahead, stop, AskToStop(stop, "on_step_end", 7))
    assert log_of(train_here(ahead)) == log_of(whole)


def test_a_damaged_checkpoint_is_skipped_with_a_message(tmp_path: Path) -> None:
    train_forked(tmp_path)
    run = tmp_path / "run"
    weights = (run / "model.safetensors").read_bytes()
    flip(run / "checkpoint-20" / "optimizer.pt")
    (run / "model.safetensors").unlink()
    said = train_forked(tmp_path, "--resume_from_checkpoint", "auto")
    assert (
        "skipped     run/checkpoint-20 is not a valid checkpoint: the content of optimizer.pt"
        in (said.stdout)
    )
    assert "resumed from run/checkpoint-10" in said.stdout
    assert "Traceback" not in said.stderr
    assert (run / "model.safetensors").read_bytes() == weights
    assert (run / "damaged-checkpoint-20").is_dir(), "nothing was deleted"
    record = json.loads((run / "run.json").read_text())
    assert [session["status"] for session in record["sessions"]] == ["finished", "finished"]


def test_resuming_is_refused_if_every_checkpoint_is_damaged(
    run_dir: Path, tiny_arguments: Parse
) -> None:
    for step in (10, 20):
        flip(run_dir / f"checkpoint-{step}" / "model.safetensors")
    with pytest.raises(UserError, match=r"is valid \(.*checkpoint-20.*; .*checkpoint-10.*\); move"):
        where_to_start(tiny_arguments("--resume_from_checkpoint", "auto").training)
    with pytest.raises(UserError, match=r"the content of model\.safetensors has changed"):
        where_to_start(
            tiny_arguments("--resume_from_checkpoint", str(run_dir / "checkpoint-10")).training
        )


def continued(arguments: Arguments, run: Path) -> None:
    """Check whether these settings may resume from the checkpoint of another run."""
    start = where_to_start(arguments.training)
    assert start.checkpoint is not None
    check_same_run(start.checkpoint, trainer_of(arguments).weight_settings)


AUTO = ("--resume_from_checkpoint", "auto")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--learning_rate", "2e-2"), "learning_rate was 0.01, is 0.02"),
        (("--seed", "7"), "seed was 42, is 7"),
        (("--global_batch_size", "16"), "global_batch_size was 8, is 16"),
        (("--max_steps", "30"), "max_steps was 20, is 30"),
        (("--warmup_steps", "0.5"), "warmup_steps was 0, is 10"),
        (("--bf16", "true"), "mixed_precision was 'no', is 'bf16'"),
        (("--resid_dropout", "0.1"), "resid_dropout was 0.0, is 0.1; processes was None, is 1"),
        (("--toy_seed", "1"), "training_text.toy.seed was 0, is 1"),
        (("--drop_empty",), r"cleaning was \[\], is \['drop_empty'\]"),
    ],
)
def test_settings_that_would_change_the_weights_are_refused_by_name(
    run_dir: Path, tiny_arguments: Parse, flags: tuple[str, ...], words: str
) -> None:
    before = sorted(run_dir.rglob("*"))
    with pytest.raises(UserError, match=f"other settings that determine the weights: .*{words}"):
        continued(tiny_arguments(*AUTO, *flags), run_dir)
    assert sorted(run_dir.rglob("*")) == before


def test_more_steps_are_refused_with_the_reason_if_the_schedule_depends_on_them(
    run_dir: Path, tiny_arguments: Parse
) -> None:
    reason = r"\(with lr_scheduler_type linear the learning rate of each step depends on the number"
    with pytest.raises(UserError, match=rf"max_steps was 20, is 30 {reason}.*constant_with_warmup"):
        continued(tiny_arguments(*AUTO, "--max_steps", "30"), run_dir)
    with pytest.raises(UserError) as caught:
        continued(tiny_arguments(*AUTO, "--seed", "1"), run_dir)
    assert "lr_scheduler_type" not in str(caught.value)


def test_a_run_directory_instead_of_a_checkpoint_is_refused_with_its_newest_checkpoint(
    run_dir: Path, tiny_arguments: Parse
) -> None:
    training = tiny_arguments("--resume_from_checkpoint", str(run_dir)).training
    for newest in ("checkpoint-20", "checkpoint-10"):
        with pytest.raises(UserError, match=rf"is a run directory, not a checkpoint; .*/{newest},"):
            where_to_start(training)
        flip(run_dir / newest / "model.safetensors")
    with pytest.raises(UserError, match="not a valid checkpoint"):
        where_to_start(training)


def test_all_other_settings_may_change(run_dir: Path, tiny_arguments: Parse) -> None:
    watching = ("--logging_steps", "2", "--eval_steps", "5", "--save_steps", "4",
                "--save_total_limit", "1", "--max_eval_rows", "4", "--run_name", "other",
                "--dataloader_num_workers", "1", "--attn_implementation", "eager")  # fmt: skip
    arguments = tiny_arguments(*AUTO, *watching)
    start = where_to_start(arguments.training)
    assert start.checkpoint is not None
    then, now = start.checkpoint.record.trajectory, trainer_of(arguments).weight_settings
    assert setting_differences(then, now) == []
    continued(arguments, run_dir)


def test_differences_name_nested_and_new_settings() -> None:
    then, now = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert setting_differences(then, now) == [
        "a.c was 2, is 4",
        "d was 3, is 'not set'",
        "e was 'not set', is 5",
    ]


def test_a_run_without_dropout_resumes_with_another_number_of_processes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    train_forked(one, "--save_total_limit", "null")
    shutil.copytree(one, two)
    shutil.rmtree(two / "run" / "checkpoint-20")
    train_forked(two, *AUTO, num_processes=2)
    logs = [
        {entry["step"]: entry["loss"] for entry in json.loads(
            (folder / "run/checkpoint-20/trainer_state.json").read_text())["log_history"]
         if "loss" in entry}
        for folder in (one, two)
    ]  # fmt: skip
    assert logs[0].keys() == logs[1].keys()
    assert max(abs(logs[0][step] - logs[1][step]) for step in logs[0]) < 1e-4
    record = json.loads((two / "run" / "run.json").read_text())
    assert [session["batch"]["num_processes"] for session in record["sessions"]] == [1, 2]


def test_with_dropout_other_processes_are_refused(tiny_arguments: Parse, tmp_path: Path) -> None:
    arguments = tiny_arguments(*UNEVEN)
    train_here(arguments)
    start = where_to_start(tiny_arguments(*UNEVEN, *AUTO).training)
    assert start.checkpoint is not None
    trainer = trainer_of(arguments)
    two = {**trainer.weight_settings, "processes": 2, "per_device_train_batch_size": 4}
    with pytest.raises(UserError, match="processes was 1, is 2; per_device_train_batch_size was 8"):
        check_same_run(start.checkpoint, two)
    assert trainer.plan == BatchPlan(8, 1, 8, 1)


def test_a_finished_run_is_not_trained_again(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    said = train_forked(tmp_path, *AUTO)
    assert "is already finished" in said.stdout
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert after == before
