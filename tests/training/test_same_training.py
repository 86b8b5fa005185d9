"""This package's model has the losses of Transformers' own model at every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, set_seed

from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.training_rows import training_rows
from tinystories_hf.model.modeling import build_config, build_model
from tinystories_hf.training.batch import plan_batch
from tinystories_hf.training.train import build_trainer
from tinystories_hf.training.trainer_arguments import build_trainer_arguments

Parse = Callable[..., Arguments]
FAST, STOCK = "fast", "stock"


def fresh(path: str, arguments: Arguments, folder: Path) -> PreTrainedModel:
    set_seed(arguments.training.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    if path == STOCK:
        return transformers.GPTNeoForCausalLM(build_config(arguments.model, tokenizer.eos_token_id))
    return build_model(arguments.model, tokenizer, arguments.data.context_length)


def train(path: str, arguments: Arguments, resume: Path | None = None) -> dict[int, float]:
    """Train through the Trainer and return the loss of each step."""
    plan = plan_batch(arguments.training, 1)
    settings = build_trainer_arguments(arguments.training, plan)
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    model = fresh(path, arguments, prepared.path)
    rows = training_rows(prepared, arguments.data, settings.data_seed)
    trainer = build_trainer(arguments, plan, settings, prepared, rows, model)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def differences(ours: dict[int, float], stock: dict[int, float]) -> list[float]:
    assert ours.keys() == stock.keys()
    return [ours[step] - stock[step] for step in sorted(ours)]


def check_hundred_steps(arguments: Callable[[str], Arguments]) -> None:
    ours, stock, again = (train(path, arguments(name)) for path, name in (
        (FAST, "ours"), (STOCK, "stock"), (FAST, "again")
    ))  # fmt: skip
    apart = differences(ours, stock)
    print(f"mean |difference| {fmean(map(abs, apart)):.1e}, mean of the last 25 steps"
          f" {fmean(apart[-25:]):+.1e}, loss {ours[1]:.4f} to {ours[100]:.4f}")  # fmt: skip
    assert len(apart) == 100
    assert fmean(map(abs, apart)) < 1e-4
    assert abs(fmean(apart[-25:])) < 1e-4, "no drift"
    assert again == ours, "bit-identical when repeated"
    assert ours[100] < ours[1] - 0.5, "the loss falls"


def test_a_hundred_steps_have_the_losses_of_stock(tiny_arguments: Parse, tmp_path: Path) -> None:
    def arguments(name: str) -> Arguments:
        flags = ("--max_steps", "100", "--eval_steps", "100", "--save_steps", "100")
        gently = ("--learning_rate", "2e-3")
        return tiny_arguments(*flags, *gently, "--output_dir", str(tmp_path / name))

    check_hundred_steps(arguments)


@pytest.mark.slow
def test_a_hundred_steps_of_xs_on_real_stories_have_the_losses_of_stock(
    shared: Path, tmp_path: Path
) -> None:
    def arguments(name: str) -> Arguments:
        data = shared / "data"
        return parse_arguments(
            [
                *("--dataset", str(data / "tinystories"), "--prepared_dir", str(tmp_path / "rows")),
                *("--tokenizer", str(data / "gpt-neo-tokenizer"), "--bf16", "false"),
                *("--attention_dropout", "0", "--embed_dropout", "0", "--resid_dropout", "0"),
                *("--global_batch_size", "8", "--max_steps", "100", "--eval_steps", "100"),
                *("--save_steps", "100", "--max_eval_rows", "8", "--logging_steps", "1"),
                *("--output_dir", str(tmp_path / name)),
            ]
        )

    torch.set_num_threads(2)
    check_hundred_steps(arguments)


@pytest.mark.parametrize(("first", "then"), [(FAST, STOCK), (STOCK, FAST)])
def test_a_checkpoint_of_either_model_resumes_with_the_other(
    tiny_arguments: Parse, tmp_path: Path, first: str, then: str
) -> None:
    constant = ("--lr_scheduler_type", "constant", "--learning_rate", "2e-3")

    def arguments(name: str, steps: int) -> Arguments:
        flags = (*constant, "--max_steps", str(steps), "--output_dir", str(tmp_path / name))
        return tiny_arguments(*flags)

    whole = train(first, arguments("whole", 20))
    train(first, arguments("changed", 10))
    changed = train(then, arguments("changed", 20), tmp_path / "changed" / "checkpoint-10")
    apart = differences(changed, whole)
    assert apart[:10] == [0.0] * 10
    assert max(map(abs, apart)) < 1e-4
    weights = [
        transformers.GPTNeoForCausalLM.from_pretrained(tmp_path / name / "checkpoint-20")
        for name in ("whole", "changed")
    ]
    for one, two in zip(*(model.parameters() for model in weights), strict=True):
        assert (one - two).norm() < 1e-3 * one.norm()
