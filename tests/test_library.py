"""The package used as a library: a process is left as it was, and a second call is the first."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import pytest
import torch
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, get_session
from transformers.utils import enable_tf32
from transformers.utils.logging import is_progress_bar_enabled

from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.device import restoring_precision
from tinystories_hf.hub.client import ask
from tinystories_hf.training.train import train

Parse = Callable[..., Arguments]


def process_state() -> dict[str, Any]:
    return {
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "threads": torch.get_num_threads(),
        "precision": torch.backends.fp32_precision,  # type: ignore[attr-defined]
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "backend of matplotlib": matplotlib.get_backend(),
        "bars": (
            are_progress_bars_disabled(),
            is_progress_bar_enabled(),
            datasets.is_progress_bar_enabled(),
        ),
        "verbosity": transformers.logging.get_verbosity(),
        "timeout": get_session().timeout,
    }


def test_a_second_training_in_a_process_is_the_first_one_again(
    tiny_arguments: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a launcher that asked for nothing, and with a backend of matplotlib of the caller's."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    matplotlib.use("svg")
    before = process_state()
    for bf16, name in (("auto", "first"), ("auto", "second")):
        train(
            tiny_arguments(
                *("--max_steps", "2", "--bf16", bf16, "--output_dir", str(tmp_path / name))
            )
        )
        assert process_state() == before
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    records = [(tmp_path / name / "run.json").read_text() for name in ("first", "second")]
    assert ['"mixed_precision": "bf16"' in record for record in records] == [True, True]


def test_trainings_of_other_precisions_follow_one_another(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    for bf16 in ("true", "false"):
        folder = tmp_path / bf16
        train(tiny_arguments("--max_steps", "1", "--bf16", bf16, "--output_dir", str(folder)))
        expected = "bf16" if bf16 == "true" else "no"
        assert f'"mixed_precision": "{expected}"' in (folder / "run.json").read_text()


def test_tf32_that_the_trainer_switches_on_does_not_outlive_the_training() -> None:
    before = process_state()
    with restoring_precision():
        enable_tf32(True)
        assert process_state() != before
    assert process_state() == before


def test_the_time_that_a_request_may_take_is_its_own() -> None:
    before = get_session().timeout
    assert ask(lambda _: get_session().timeout) != before, "limited while it is asked"
    assert get_session().timeout == before
    with pytest.raises(ValueError, match="no"):
        ask(lambda _: int("no"))
    assert get_session().timeout == before
