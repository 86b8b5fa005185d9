from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoForCausalLM

from tests.support.forked import train_forked
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.training_rows import collate_rows
from tinystories_hf.evaluation.suites.loss import score_tokens
from tinystories_hf.evaluation.validation import (
    PACKED,
    read_validation,
    scoring_windows,
    tokenize_stories,
)
from tinystories_hf.training.batch import BatchPlan
from tinystories_hf.training.resume import where_to_start
from tinystories_hf.training.run_directory import lock_run_directory
from tinystories_hf.training.trainer import StoryTrainer
from tinystories_hf.training.trainer_arguments import build_trainer_arguments

Parse = Callable[..., Arguments]


def history(run: Path) -> list[dict[str, Any]]:
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    log: list[dict[str, Any]] = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return log


def train_and_log(folder: Path, *flags: str, **options: Any) -> list[dict[str, Any]]:
    train_forked(folder, *flags, **options)
    return history(folder / "run")


def losses(log: list[dict[str, Any]]) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


DROPOUT = ("--attention_dropout", "0.1", "--embed_dropout", "0.1", "--resid_dropout", "0.1")


def test_a_launched_run_prints_nothing_but_its_own_output(trained_run: Path) -> None:
    assert (trained_run.parent / "stderr.txt").read_text(encoding="utf-8") == ""
    said = (trained_run.parent / "stdout.txt").read_text(encoding="utf-8")
    assert "accelerate" not in said
    assert "%|" not in said, "a progress bar of another library"


def test_the_run_directory_contains_the_documented_files(trained_run: Path) -> None:
    names = {path.name for path in trained_run.iterdir()}
    promised = {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "README.md", "run.json", "train_results.json"),
        *("eval_results.json", "samples.md", "loss.png", "checkpoint-20"),
    }
    assert promised <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}
    config = json.loads((trained_run / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("gpt_neo", ["GPTNeoForCausalLM"])
    assert "auto_map" not in config


def test_a_tiny_model_learns_and_its_results_agree(trained_run: Path) -> None:
    log = losses(history(trained_run))
    assert log[20] < log[1] - 0.5
    results = json.loads((trained_run / "train_results.json").read_text())
    assert results["tokens_seen"] == 20 * 8 * 64
    final = json.loads((trained_run / "eval_results.json").read_text())["loss"]["packed"]
    assert abs(final["loss"] - log[20]) < 0.5


def test_the_log_is_readable(trained_run: Path) -> None:
    out = (trained_run.parent / "stdout.txt").read_text()
    assert "8 sequences per step = 8 per device x 1 process x 1 accumulation step" in out
    assert "tokens/s" in out
    assert "generate.py --model run --prompt 'Once upon a time'" in out
    # Checkpoints of a model this small are written within one tick of the file system's clock.
    said = (trained_run.parent / "stderr.txt").read_text().splitlines()
    assert [line for line in said if "mtime may not be reliable" not in line] == []


def test_samples_are_written_at_every_evaluation(trained_run: Path) -> None:
    text = (trained_run / "samples.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Step 10",
        "## Step 20",
    ]
    assert text.count("**Once upon a time**") == 2


def test_the_final_loss_is_measured_in_fp32_on_the_saved_weights(
    tmp_path: Path, tiny_arguments: Parse
) -> None:
    train_forked(tmp_path, "--bf16", "true", "--max_steps", "10")
    recorded = json.loads((tmp_path / "run" / "eval_results.json").read_text())["loss"]["packed"]
    model = GPTNeoForCausalLM.from_pretrained(tmp_path / "run")
    arguments = tiny_arguments()
    tokenizer = prepare(arguments.data, arguments.model.vocab_size, quiet=True).tokenizer
    stories = tokenize_stories(tokenizer, read_validation(arguments.data).texts)

    def measure() -> float:
        return float(score_tokens(model, scoring_windows(stories, PACKED, 64), batch_size=8).mean())

    assert recorded["loss"] == pytest.approx(measure(), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert recorded["loss"] != pytest.approx(measure(), rel=1e-6), "bf16 would differ"


def test_a_directory_with_another_run_is_refused(tiny_arguments: Parse, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert where_to_start(tiny_arguments().training).checkpoint is None
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    (run / "run.json").write_text("{}")  # from a run that saved nothing
    assert where_to_start(tiny_arguments().training).checkpoint is None
    (run / "run.json").unlink()
    (run / "config.json").write_text("{}")
    for flags in ((), ("--resume_from_checkpoint", "auto")):
        with pytest.raises(UserError, match=r"already contains a run \(config.json\)"):
            where_to_start(tiny_arguments(*flags).training)
    (run / "checkpoint-7").mkdir()
    with pytest.raises(UserError, match=r"already contains a run \(checkpoint-7\)"):
        where_to_start(tiny_arguments().training)


def test_resuming_needs_a_checkpoint(tiny_arguments: Parse, tmp_path: Path) -> None:
    assert where_to_start(
        tiny_arguments("--resume_from_checkpoint", "auto").training
    ).checkpoint is None, "auto starts a new run if there is none"  # fmt: skip
    with pytest.raises(UserError, match="no checkpoint in"):
        where_to_start(tiny_arguments("--resume_from_checkpoint").training)
    with pytest.raises(UserError, match=r"not a valid checkpoint: it has no checkpoint\.json"):
        where_to_start(tiny_arguments("--resume_from_checkpoint", str(tmp_path)).training)
    with pytest.raises(UserError, match="nowhere is not a valid checkpoint: it does not exist"):
        where_to_start(tiny_arguments("--resume_from_checkpoint", "nowhere").training)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="is a file"), lock_run_directory(file):
        pass


def test_an_unknown_tracker_is_an_error(tiny_arguments: Parse) -> None:
    training = tiny_arguments("--report_to", "nosuchtracker").training
    with pytest.raises(UserError, match=r"report_to: unknown tracker nosuchtracker; .*tensorboard"):
        build_trainer_arguments(training, BatchPlan(8, 1, 8, 1))


def test_rows_become_int64_batches_whose_labels_are_the_ids() -> None:
    import numpy as np

    batch = collate_rows([np.array([65_535, 1], dtype=np.uint16)] * 3)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["labels"].tolist() == [[65_535, 1]] * 3


def test_each_epoch_has_complete_steps_only_and_leaves_out_other_rows() -> None:
    trainer = StoryTrainer.__new__(StoryTrainer)
    trainer.plan = BatchPlan(8, 1, 8, 1)
    trainer.train_dataset = list(range(30))
    sampler = trainer._get_train_sampler()
    epochs = [list(sampler) for _ in range(20)]
    assert all(len(epoch) == len(set(epoch)) == 24 for epoch in epochs)
    assert set().union(*epochs) == set(range(30))
