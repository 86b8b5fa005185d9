from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoForCausalLM

from tests.conftest import train_tiny
from tinystories_hf.arguments import Arguments
from tinystories_hf.batch import BatchPlan
from tinystories_hf.data import prepare
from tinystories_hf.errors import UserError
from tinystories_hf.evaluation.loss import token_losses
from tinystories_hf.evaluation.reading import PACKED, read_validation, reading, tokenize_stories
from tinystories_hf.run_directory import claimed, where_to_start
from tinystories_hf.trainer import StoryTrainer, collate_rows
from tinystories_hf.training import build_trainer_arguments

Parse = Callable[..., Arguments]


def history(run: Path) -> list[dict[str, Any]]:
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    log: list[dict[str, Any]] = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return log


def train_and_log(folder: Path, *flags: str, **options: Any) -> list[dict[str, Any]]:
    train_tiny(folder, *flags, **options)
    return history(folder / options.get("run", "run"))


def losses(log: list[dict[str, Any]]) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


DROPOUT = ("--attention_dropout", "0.1", "--embed_dropout", "0.1", "--resid_dropout", "0.1")


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir()
    # Fewer than 10 steps in an epoch: the checkpoint at step 10 lies inside the second.
    small = ("--toy_stories", "60", "--global_batch_size", "32")
    accumulated = ("--per_device_train_batch_size", "16", "--save_total_limit", "null")
    flags = (*DROPOUT, *small, *accumulated)
    whole = train_and_log(straight, *flags)
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "run" / "checkpoint-20")
    again = train_and_log(resumed, *flags, "--resume_from_checkpoint")
    assert losses(again) == losses(whole)
    assert 1 < next(entry["epoch"] for entry in whole if entry["step"] == 10) < 2
    first, second = (
        load_file(folder / "run" / "model.safetensors") for folder in (straight, resumed)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    samples = [(folder / "run" / "samples.md").read_text() for folder in (straight, resumed)]
    assert samples[0] == samples[1]
    record = json.loads((resumed / "run" / "run.json").read_text())
    assert [session["resumed_from"] for session in record["sessions"]] == [
        None,
        "run/checkpoint-10",
    ]
    other = train_and_log(resumed, *flags, "--seed", "43", run="other")
    assert losses(other) != losses(whole), "the comparison can fail"


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    constant = (*DROPOUT, "--lr_scheduler_type", "constant")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        folder.mkdir()
    whole = train_and_log(straight, *constant, "--max_steps", "20")
    train_tiny(stopped, *constant, "--max_steps", "10")
    again = train_and_log(stopped, *constant, "--max_steps", "20", "--resume_from_checkpoint")
    assert losses(again) == losses(whole)
    assert (stopped / "run/model.safetensors").read_bytes() == (
        straight / "run/model.safetensors"
    ).read_bytes()


def test_the_run_directory_holds_what_it_promises(trained_run: Path) -> None:
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


def test_a_tiny_model_learns_and_its_numbers_agree(trained_run: Path) -> None:
    log = losses(history(trained_run))
    assert log[20] < log[1] - 0.5
    results = json.loads((trained_run / "train_results.json").read_text())
    assert results["tokens_seen"] == 20 * 8 * 64
    final = json.loads((trained_run / "eval_results.json").read_text())["loss"]["packed"]
    assert abs(final["loss"] - log[20]) < 0.5


def test_the_log_is_for_people(trained_run: Path) -> None:
    out = (trained_run.parent / "stdout.txt").read_text()
    assert "8 sequences per step = 8 per device x 1 process x 1 accumulation step" in out
    assert "tokens/s" in out
    assert "python scripts/generate.py --model run --prompt 'Once upon a time'" in out
    # Checkpoints of a model this small are written within one tick of the file system's clock.
    said = (trained_run.parent / "stderr.txt").read_text().splitlines()
    assert [line for line in said if "mtime may not be reliable" not in line] == []


def test_samples_are_told_at_every_evaluation(trained_run: Path) -> None:
    text = (trained_run / "samples.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Step 10",
        "## Step 20",
    ]
    assert text.count("**Once upon a time**") == 2


def test_the_final_loss_is_that_of_the_saved_weights_in_fp32(
    tmp_path: Path, tiny_arguments: Parse
) -> None:
    train_tiny(tmp_path, "--bf16", "true", "--max_steps", "10")
    recorded = json.loads((tmp_path / "run" / "eval_results.json").read_text())["loss"]["packed"]
    model = GPTNeoForCausalLM.from_pretrained(tmp_path / "run")
    arguments = tiny_arguments()
    tokenizer = prepare(arguments.data, arguments.model.vocab_size, quiet=True).tokenizer
    stories = tokenize_stories(tokenizer, read_validation(arguments.data).texts)

    def measure() -> float:
        return float(token_losses(model, reading(stories, PACKED, 64), batch_size=8).mean())

    assert recorded["loss"] == pytest.approx(measure(), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert recorded["loss"] != pytest.approx(measure(), rel=1e-6), "bf16 would show"


def test_a_directory_with_another_run_is_refused(tiny_arguments: Parse, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert where_to_start(tiny_arguments().training).checkpoint is None
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert where_to_start(tiny_arguments().training).checkpoint is None
    (run / "config.json").write_text("{}")
    for flags in ((), ("--resume_from_checkpoint", "auto")):
        with pytest.raises(UserError, match=r"already holds a run \(config.json\)"):
            where_to_start(tiny_arguments(*flags).training)
    (run / "checkpoint-7").mkdir()
    with pytest.raises(UserError, match=r"already holds a run \(checkpoint-7\)"):
        where_to_start(tiny_arguments().training)


def test_resuming_needs_a_checkpoint(tiny_arguments: Parse, tmp_path: Path) -> None:
    assert where_to_start(
        tiny_arguments("--resume_from_checkpoint", "auto").training
    ).checkpoint is None, "auto begins where there is none"  # fmt: skip
    with pytest.raises(UserError, match="no checkpoint in"):
        where_to_start(tiny_arguments("--resume_from_checkpoint").training)
    with pytest.raises(UserError, match=r"not a whole checkpoint: it has no checkpoint\.json"):
        where_to_start(tiny_arguments("--resume_from_checkpoint", str(tmp_path)).training)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="is a file"), claimed(file):
        pass


def test_an_unknown_tracker_is_an_error(tiny_arguments: Parse) -> None:
    training = tiny_arguments("--report_to", "nosuchtracker").training
    with pytest.raises(UserError, match="report_to: nosuchtracker is not installed"):
        build_trainer_arguments(training, BatchPlan(8, 1, 8, 1))


def test_rows_become_int64_batches_whose_labels_are_the_ids() -> None:
    import numpy as np

    batch = collate_rows([np.array([65_535, 1], dtype=np.uint16)] * 3)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["labels"].tolist() == [[65_535, 1]] * 3


def test_each_epoch_is_whole_steps_and_leaves_other_rows_out() -> None:
    trainer = StoryTrainer.__new__(StoryTrainer)
    trainer.plan = BatchPlan(8, 1, 8, 1)
    trainer.train_dataset = list(range(30))
    sampler = trainer._get_train_sampler()
    epochs = [list(sampler) for _ in range(20)]
    assert all(len(epoch) == len(set(epoch)) == 24 for epoch in epochs)
    assert set().union(*epochs) == set(range(30))
