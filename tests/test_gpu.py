"""What only a GPU can show: `python -m pytest -m gpu`. The rest of the suite runs on the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainerCallback

from tests.model.test_attention import configuration, distance, gradients, tokens
from tests.training.test_resume import trainer_of
from tinystories_hf.benchmark import gpu
from tinystories_hf.benchmark.implementations import (
    OURS,
    PRECISIONS,
    STOCK,
    Case,
    Step,
    training_step,
)
from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.core.device import full_precision, has_native_bf16
from tinystories_hf.model import gpu_attention
from tinystories_hf.model.cross_entropy import causal_lm_loss
from tinystories_hf.model.modeling import GPTNeoForCausalLM
from tinystories_hf.training.train import train

HALF = "bf16" if has_native_bf16() else "fp16"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def pair(**changes: float) -> tuple[GPTNeoForCausalLM, transformers.GPTNeoForCausalLM]:
    torch.manual_seed(0)
    stock = transformers.GPTNeoForCausalLM(configuration(**changes)).cuda().eval()
    ours = GPTNeoForCausalLM(configuration(**changes)).cuda().eval()
    ours.load_state_dict(stock.state_dict())
    return ours, stock


@pytest.mark.parametrize("length", [7, 256, 257, 512])
def test_logits_loss_and_gradients_are_those_of_eager_attention(length: int) -> None:
    ours, stock = pair(hidden_size=64, num_heads=16)
    ids = tokens(2, length).cuda()
    with full_precision():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=1e-5, rtol=0)
        loss = ours(ids, labels=ids, skip_logits=True).loss
        right = stock(ids, labels=ids).loss
        assert abs(loss.item() - right.item()) < 1e-5
        assert distance(gradients(ours, loss), gradients(stock, right)) < 1e-5


def test_left_padding_and_a_cache_change_nothing() -> None:
    ours, stock = pair(window_size=8)
    ids = tokens(3, 20).cuda()
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    how = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False}
    with full_precision():
        assert torch.equal(ours.generate(ids, **how), stock.generate(ids, **how))


def test_a_compiled_step_is_the_step_that_is_not_compiled() -> None:
    losses = []
    for compiled in (False, True):
        ours, _ = pair(hidden_size=64, num_heads=16)
        ours.train()
        if compiled:
            ours.compile_training()
        optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3, fused=True)
        ids = tokens(4, 512).cuda()
        for _ in range(5):
            loss = ours(ids, labels=ids, skip_logits=True).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        assert not any("_orig_mod" in name for name in ours.state_dict())
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize("kind", ["global", "local"])
def test_attention_in_half_precision_is_fused_and_right(kind: str) -> None:
    """XS has heads of 4, for which PyTorch alone would hold all scores."""
    dtype = PRECISIONS[HALF]
    assert gpu_attention.runs_fused(4, dtype, torch.device("cuda"), masked=kind == "local")
    rows = gpu.attention_of_layers(parse_arguments([]).model, 512, HALF)
    (row,) = (row for row in rows if (row["layer"], row["precision"]) == (kind, HALF))
    assert row["output_error"] < 0.02
    assert row["gradient_error"] < 0.02


def test_the_window_of_flash_attention_is_there_and_right_on_ampere_and_newer() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("flash attention needs compute capability 8.0")
    assert gpu_attention.has_known_signature()
    assert gpu_attention.computes_the_window(torch.device("cuda"))


def step(rows: int, compiled: bool, name: str = OURS) -> Step:
    arguments = parse_arguments(["--torch_compile", str(compiled).lower()])
    ids = torch.randint(50257, (rows, 512))
    case = Case(HALF, 0.1, 0.1, rows)
    return training_step(name, arguments.model, arguments.training, case, ids)


def peak(run: Step) -> int:
    run()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def test_the_specified_step_of_80_rows_fits_a_card_of_8_gb() -> None:
    assert peak(step(80, compiled=True)) <= 2.5e9


def test_a_step_takes_a_fraction_of_the_memory_of_stock() -> None:
    """Counted for 16 rows: 0.16 of stock."""
    peaks = [peak(step(16, compiled=True)), peak(step(16, compiled=False, name=STOCK))]
    assert peaks[0] < 0.3 * peaks[1]


def test_a_step_does_not_wait_for_the_gpu() -> None:
    run = step(8, compiled=True)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        if HALF == "bf16":  # loss scaling reads whether the gradients are finite
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # The test can fail: reading a loss waits.
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_waits_for_the_gpu_only_where_it_logs(
    tiny_arguments: Callable[..., Arguments], tmp_path: Path
) -> None:
    flags = ("--max_steps", "9", "--logging_steps", "100", "--bf16", "auto")
    rare = ("--eval_steps", "100", "--save_steps", "100", "--output_dir", str(tmp_path))
    trainer = trainer_of(tiny_arguments(*flags, *rare))

    watched: list[int] = []

    class Waits(TrainerCallback):
        def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 2:
                torch.cuda.set_sync_debug_mode("error")

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 8:
                watched.append(torch.cuda.get_sync_debug_mode())
                torch.cuda.set_sync_debug_mode("default")

    trainer.add_callback(Waits())
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watched == [2], "a wait would have been an error from the third step to the eighth"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_compiled_loss_is_as_exact_as_the_logits_in_that_dtype(precision: str) -> None:
    dtype, generator = PRECISIONS[precision], torch.Generator().manual_seed(1)
    states = torch.randn(700, 64, generator=generator).cuda()
    weight = (torch.randn(50257, 64, generator=generator) / 5).cuda()
    labels = torch.randint(50257, (700,), generator=generator).cuda()
    labels[:9] = -100
    losses = []
    for name in ("exact", "stock", "ours"):
        given = (states.double(), weight.double()) if name == "exact" else (states, weight)
        with torch.autocast("cuda", dtype, enabled=name != "exact"):
            if name == "ours":
                loss = causal_lm_loss(*given, labels, None, labels, compiled=True)
            else:
                logits = torch.nn.functional.linear(*given)
                wide = logits if name == "exact" else logits.float()
                loss = torch.nn.functional.cross_entropy(wide, labels)
        losses.append(loss.item())
    assert abs(losses[2] - losses[0]) < max(2 * abs(losses[1] - losses[0]), 1e-4)


def test_published_losses_are_not_computed_in_tf32() -> None:
    errors = gpu.tf32_errors()
    assert errors["losses"] < 1e-6
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors["training"] > 1e-5, "the test can fail"


def test_with_the_setting_a_stopped_run_resumes_bit_identically(
    tiny_arguments: Callable[..., Arguments], tmp_path: Path
) -> None:
    flags = ("--max_steps", "12", "--eval_steps", "12", "--save_steps", "5", "--bf16", "auto")
    more = ("--attention_dropout", "0.1", "--resid_dropout", "0.1", "--deterministic")
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(tiny_arguments(*flags, *more, "--output_dir", str(whole)))
    again.mkdir()
    shutil.copytree(whole / "checkpoint-5", again / "checkpoint-5")
    shutil.copyfile(whole / "run.json", again / "run.json")
    place = ("--output_dir", str(again), "--resume_from_checkpoint", "auto")
    train(tiny_arguments(*flags, *more, *place))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, again)]
    assert weights[0] == weights[1]


def test_fp16_with_loss_scaling_trains(
    tiny_arguments: Callable[..., Arguments], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    flags = ("--max_steps", "30", "--bf16", "false", "--output_dir", str(tmp_path))
    trainer = trainer_of(tiny_arguments(*flags))
    assert trainer.args.fp16
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < logged[0] - 0.3


def test_a_whole_run_trains_evaluates_and_generates(
    tiny_arguments: Callable[..., Arguments], tmp_path: Path
) -> None:
    train(tiny_arguments("--max_steps", "20", "--bf16", "auto", "--output_dir", str(tmp_path)))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["sessions"][0]["device"] == torch.cuda.get_device_name()
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.dtype == torch.float32


def test_the_gpu_part_of_the_benchmark_runs() -> None:
    found = gpu.measure_gpu(parse_arguments([]))
    assert found["same_gradients"]["deterministic"]
    assert found["steps"][0]["rows"] == 80
