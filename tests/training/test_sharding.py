"""Sharded training with configs/accelerate/fsdp.yaml, on the CPU over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.conftest import ROOT, TINY_CONFIG, environment, made_once
from tests.support.forked import run_forked, train_forked
from tests.support.sharded import launched_sharded, sharded_script
from tests.training.test_train import DROPOUT, history, losses, train_and_log
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.hub.publish import _MODEL_FILES

# With dropout, so that an evaluation that changes the random state is detected.
FEW = (
    *(*DROPOUT, "--max_steps", "10", "--eval_steps", "5"),
    *("--save_steps", "5", "--save_total_limit", "null"),
)


def write_configs(folder: Path) -> None:
    launcher = (ROOT / "configs" / "accelerate" / "fsdp.yaml").read_text()
    (folder / "fsdp.yaml").write_text(launcher.replace("use_cpu: false", "use_cpu: true"))
    (folder / "tiny.yaml").write_text(TINY_CONFIG)


def train_sharded_forked(folder: Path, *flags: str) -> dict[int, float]:
    """Train as `train_sharded` does, in forked processes without the launcher."""
    write_configs(folder)
    words = ["--config", "tiny.yaml", "--output_dir", "run", *flags]
    variables = launched_sharded(folder / "fsdp.yaml")
    done = run_forked(
        folder, sharded_script, "train.py", words, num_processes=2, variables=variables
    )
    assert done.returncode == 0, done.stderr
    return losses(history(folder / "run"))


def train_sharded(folder: Path, *flags: str) -> dict[int, float]:
    """Train the tiny model sharded over two processes; return the loss of each step."""
    write_configs(folder)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", "fsdp.yaml"),
            *("--num_processes", "2", "--num_cpu_threads_per_process", "1"),
            *("--module", "tests.support.sharded", str(ROOT / "scripts" / "train.py")),
            *("--config", "tiny.yaml", "--output_dir", "run", *flags),
        ],
        cwd=folder,
        env=environment(folder / "home", PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return losses(history(folder / "run"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a replicated and of a sharded run, with two processes each."""
    return (
        made_once(tmp_path_factory, "plain", lambda it: train_forked(it, *FEW, num_processes=2)),
        made_once(tmp_path_factory, "sharded", lambda it: train_sharded(it, *FEW)),
    )


def test_a_sharded_model_has_the_losses_of_a_replicated_one(runs: tuple[Path, Path]) -> None:
    plain, sharded = (losses(history(folder / "run")) for folder in runs)
    assert len(plain) == len(sharded) == 10
    assert max(abs(plain[step] - sharded[step]) for step in plain) < 1e-4
    assert sharded[10] < sharded[1] - 0.5, "the loss falls"
    # Only sharded training writes this file: the run was sharded.
    checkpoints = [folder / "run" / "checkpoint-5" for folder in runs]
    assert [(path / "pytorch_model_fsdp.bin").exists() for path in checkpoints] == [False, True]


@pytest.mark.parametrize("place", ["run", "run/checkpoint-10"])
def test_a_sharded_model_is_saved_like_any_other(runs: tuple[Path, Path], place: str) -> None:
    plain, sharded = (folder / place for folder in runs)
    found = [
        sorted(path.name for pattern in _MODEL_FILES for path in folder.glob(pattern))
        for folder in (plain, sharded)
    ]
    assert found[0] == found[1]
    assert (plain / "config.json").read_bytes() == (sharded / "config.json").read_bytes()
    first, second = (load_file(folder / "model.safetensors") for folder in (plain, sharded))
    assert first.keys() == second.keys(), "the tied head is saved once"
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
    model = transformers.GPTNeoForCausalLM.from_pretrained(sharded)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_sharded_checkpoint_has_the_expected_size(runs: tuple[Path, Path]) -> None:
    checkpoint = runs[1] / "run" / "checkpoint-10"
    names = ("model.safetensors", "pytorch_model_fsdp.bin", "optimizer.bin")
    found = sum((checkpoint / name).stat().st_size for name in names)
    shape = parse_arguments(["--config", str(runs[1] / "tiny.yaml")]).model
    parameters = sum(weight.numel() for weight in load_file(checkpoint / names[0]).values())
    # fp32: the weights twice, the second time with the tied head written out, and AdamW's states.
    counted = 4 * (4 * parameters + shape.hidden_size * shape.vocab_size)
    # The rest is metadata (names and shapes), which does not grow with the model.
    assert 0 < found - counted < 40_000


def test_a_sharded_run_generates_samples_and_measures_its_loss(runs: tuple[Path, Path]) -> None:
    plain, sharded = (folder / "run" for folder in runs)
    assert (plain / "samples.md").read_text() == (sharded / "samples.md").read_text()
    found = [json.loads((run / "eval_results.json").read_text()) for run in (plain, sharded)]
    assert found[0]["model"]["architecture"] == found[1]["model"]["architecture"]
    loss, again = (results["loss"]["packed"]["loss"] for results in found)
    assert loss == pytest.approx(again, abs=1e-5)


@pytest.mark.slow
def test_a_sharded_run_resumes_from_its_checkpoint(runs: tuple[Path, Path]) -> None:
    _, sharded = runs
    straight = losses(history(sharded / "run"))
    checkpoint = sharded / "run" / "checkpoint-5"
    again = train_sharded(sharded, *FEW, "--resume_from_checkpoint", str(checkpoint))
    assert again == straight


@pytest.mark.slow
def test_a_loss_in_bf16_training_is_not_rounded_to_bf16(tmp_path: Path) -> None:
    found = train_sharded(tmp_path, *FEW, "--bf16", "true")
    rounded = {step: torch.tensor(loss).bfloat16().item() for step, loss in found.items()}
    assert max(abs(found[step] - rounded[step]) for step in found) > 2e-3
    assert found[10] < found[1] - 0.5, "the loss falls"


def test_a_sharded_model_trains_on_a_stream_as_one_process_does(
    tmp_path: Path, trained_run: Path
) -> None:
    flags = ("--streaming", "--tokenizer", str(trained_run), "--toy_stories", "24",
             "--shuffle_buffer", "20", "--max_steps", "10")  # fmt: skip
    one, shares = tmp_path / "one", tmp_path / "shares"
    one.mkdir()
    shares.mkdir()
    whole, sharded = losses(train_and_log(one, *flags)), train_sharded_forked(shares, *flags)
    assert len(whole) == len(sharded) == 10
    assert max(abs(whole[step] - sharded[step]) for step in whole) < 1e-4
    assert (shares / "run" / "checkpoint-10" / "pytorch_model_fsdp.bin").exists(), "it was sharded"
