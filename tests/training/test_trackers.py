"""Trackers are checked before the run directory is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.training.trackers import check_trackers
from tinystories_hf.training.train import train

Parse = Callable[..., Arguments]


class LoggedOut(TrainerCallback):
    """A tracker built like those of Transformers, where the user is not logged in."""

    def setup(self, *_: Any) -> None:
        raise RuntimeError("No API key configured. Use `wandb login` to log in.\nMore of it.")

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.setup(model)


def test_a_tracker_that_cannot_start_is_one_message_and_leaves_no_run_behind(
    tiny_arguments: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", LoggedOut)
    monkeypatch.setattr(
        "tinystories_hf.training.trackers.get_available_reporting_integrations", lambda: ["wandb"]
    )
    flags = ("--max_steps", "2")
    with pytest.raises(UserError) as caught:
        train(tiny_arguments(*flags, "--report_to", "wandb"))
    assert str(caught.value) == (
        "report_to: wandb cannot be started: No API key configured. Use `wandb login` to log in."
    )
    assert not (tmp_path / "run").exists()
    assert train(tiny_arguments(*flags))["steps"] == 2, "the corrected command runs"


class Listening(TrainerCallback):
    """A tracker that records the calls of its methods."""

    received: ClassVar[list[str]] = []

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        self.received.extend(key for key in logs if key == "eval_samples" or "final" in key)
        if "eval_samples" in logs:
            assert logs["eval_samples"].startswith("> **Once upon a time**")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.received.append("end")


def test_a_tracker_receives_the_samples_and_the_final_loss_before_it_ends(
    tiny_arguments: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Listening)
    monkeypatch.setattr(
        "tinystories_hf.training.trackers.get_available_reporting_integrations",
        lambda: ["tensorboard"],
    )
    Listening.received.clear()
    train(tiny_arguments("--max_steps", "4", "--eval_steps", "2", "--report_to", "tensorboard"))
    final = ["eval_final_loss", "eval_final_bits_per_byte"]
    assert Listening.received == ["eval_samples", "eval_samples", *final, "end"]


def test_a_run_that_failed_before_its_first_step_does_not_block_the_next(
    tiny_arguments: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("anything, after run.json and before the first step")

    with monkeypatch.context() as patch:
        patch.setattr("tinystories_hf.training.train.train_steps", fail)
        with pytest.raises(OSError, match="anything"):
            train(tiny_arguments("--max_steps", "2"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
    assert train(tiny_arguments("--max_steps", "2"))["steps"] == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wandbb"], r"report_to: unknown tracker wandbb; use one of .*wandb.* all, none$"),
        (["comet"], r"unknown tracker comet; use one of .*comet_ml"),
        (["none", "wandb"], "report_to: none wandb contradict each other"),
        (["mlflow"], "report_to: mlflow is not installed"),
    ],
)
def test_an_unknown_or_missing_tracker_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, names: list[str], message: str
) -> None:
    monkeypatch.setattr(
        "tinystories_hf.training.trackers.get_available_reporting_integrations", list
    )
    with pytest.raises(UserError, match=message):
        check_trackers(names)


def test_wandb_disabled_by_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "true")
    with pytest.raises(UserError, match=r"WANDB_DISABLED=true .*; omit wandb, or `unset WANDB"):
        check_trackers(["wandb"])
    check_trackers([])
    check_trackers(["none"])
    check_trackers(["all"])
