from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoConfig

from tests.conftest import ROOT
from tinystories_hf.benchmark import gpu, implementations
from tinystories_hf.benchmark.counting import operations_per_token
from tinystories_hf.benchmark.measure import in_turn, matrix_rate, memory_bandwidth, peak_memory
from tinystories_hf.benchmark.report import benchmark_tables, summary
from tinystories_hf.benchmark.run import parse_benchmark_arguments, run_benchmark
from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.core.device import device_type
from tinystories_hf.core.errors import UserError

RECORDED = sorted((ROOT / "docs" / "results").glob("benchmark-*.json"))
PAGE = ROOT / "docs" / "benchmarks.md"


def test_the_contenders_take_turns_after_a_run_that_is_not_counted() -> None:
    calls: list[str] = []
    numbers = iter([1.0, 1.0, 30.0, 3.0, 10.0, 2.0, 20.0, 9.0])

    def run(name: str) -> Callable[[], float]:
        def action() -> float:
            calls.append(name)
            return next(numbers)

        return action

    rates = in_turn({"a": run("a"), "b": run("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert (rates["a"].median, rates["a"].lowest, rates["a"].highest) == (20.0, 10.0, 30.0)
    assert rates["b"].median == 3.0


def test_memory_is_that_of_a_process_of_its_own() -> None:
    fill = partial(torch.ones, dtype=torch.uint8, device=device_type())
    mine = fill(300 << 20)  # of this process, which the other must not count
    small, large = (peak_memory(fill, size << 20) for size in (1, 201))
    assert len(mine) == 300 << 20
    assert large - small == pytest.approx(200 << 20, rel=0.1)


def test_the_machine_is_measured() -> None:
    assert matrix_rate(torch.float32, size=256) > 1e8
    assert memory_bandwidth(2**20) > 1e8


def test_a_token_of_xs_costs_23_million_operations() -> None:
    matrices = 8 * (4 * 64 * 64 + 2 * 64 * 256) + 64 * 50257
    seen = 4 * (sum(range(1, 513)) + sum(min(i, 256) for i in range(1, 513))) / 512
    found = operations_per_token(parse_arguments([]).model, 512)
    assert found == round(6 * matrices + 12 * 64 * seen)
    assert found == pytest.approx(23e6, rel=0.01)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts", "steps"], "parts: steps; choose from step"),
        (["--parts", "roofline"], "add step"),
        (["--rounds", "0"], "at least 1"),
        (["--learning_rat", "1"], "did you mean"),
    ],
)
def test_an_impossible_benchmark_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_benchmark_arguments(flags)


def test_any_configuration_is_measured_into_a_json_that_makes_the_tables(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tiny_config: Path, tmp_path: Path
) -> None:
    parts = ("evaluation", "trainer", "generation")
    done = run_script(
        "benchmark.py", "--config", str(tiny_config), "--rounds", "1", "--parts", *parts,
        "--json", str(tmp_path / "found.json"), "--prepared_dir", str(tmp_path / "rows"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "[transformers]" not in done.stderr
    assert "shards" not in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert benchmark_tables(found) in done.stdout
    assert set(found["parts"]) == set(parts)
    assert found["made"]["versions"]["transformers"]
    assert str(tmp_path) not in json.dumps(found)
    assert found["parts"]["generation"]["stories"] == 440
    for part in ("evaluation", "trainer", "generation"):
        assert found["parts"][part]["ours"]["median"] > 0
        assert found["parts"][part]["stock"]["median"] > 0


def test_a_pretrained_model_is_not_measured_in_silence(tmp_path: Path) -> None:
    GPTNeoConfig().save_pretrained(tmp_path)
    flags = ["--model_name_or_path", str(tmp_path), "--output_dir", "x"]
    with pytest.raises(UserError, match="measures models with random weights"):
        parse_benchmark_arguments(flags)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_the_page_shows_what_was_recorded(path: Path) -> None:
    assert benchmark_tables(json.loads(path.read_text(encoding="utf-8"))) in PAGE.read_text(
        encoding="utf-8"
    )


def test_the_readme_shows_the_same_record() -> None:
    found = json.loads((ROOT / "docs" / "results" / "benchmark-cpu.json").read_text())
    assert summary(found) in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_there_is_a_record_and_its_plot() -> None:
    assert {path.stem for path in RECORDED} >= {"benchmark-cpu", "benchmark-growth-cpu"}
    assert (ROOT / "docs" / "results" / "benchmark-growth-cpu.png").exists()


def test_a_gpu_is_measured_without_data(
    tiny_arguments: Callable[..., Arguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurements themselves, on the CPU: what they report of it is known."""
    monkeypatch.setattr(gpu, "MEASURED_STEPS", 1)
    monkeypatch.setattr(gpu, "missing_for_compilation", lambda: "nothing is compiled in this test")
    found = gpu.measure_device(tiny_arguments())
    assert [step["step"] for step in found["steps"]] == ["default", "not compiled", "fp32", "stock"]
    assert all(step["rows"] == 8 and step["tokens_per_second"] > 0 for step in found["steps"])
    for row in found["attention"]:
        assert not row["fused"]
        largest = 1e-6 if row["precision"] == "fp32" else 0.02
        assert 0 < row["output_error"] < largest
        assert 0 < row["gradient_error"] < largest
    assert {row["layer"] for row in found["attention"]} == {"global", "local"}
    assert found["tf32_errors"]["losses"] < 1e-6
    assert found["same_gradients"] == {"default": True, "deterministic": True}
    assert found["operations"][0]["milliseconds"] >= found["operations"][-1]["milliseconds"] > 0
    card = {"capability": "9.0", "memory_bytes": 80e9, "cuda": "13.0", "flash_window": True}
    parts = {"gpu": {"card": {**card, "missing_for_compilation": None}, **found}}
    page = benchmark_tables({"parts": parts})
    assert "| default |" in page
    assert "| the same with deterministic | yes |" in page


def test_the_steps_that_do_not_fit_are_tried_with_half_the_rows(
    tiny_arguments: Callable[..., Arguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "MEASURED_STEPS", 1)
    monkeypatch.setattr(gpu, "missing_for_compilation", lambda: "nothing is compiled in this test")

    def training_step(name: str, shape: Any, training: Any, case: Any, *rest: Any) -> Any:
        if case.rows > 2:
            raise torch.OutOfMemoryError
        return implementations.training_step(name, shape, training, case, *rest)

    monkeypatch.setattr(gpu, "training_step", training_step)
    arguments = tiny_arguments()
    ids = torch.randint(16, (8, 32))
    steps, _ = gpu.step_times(arguments.model, arguments.training, ids, "bf16")
    assert {step["rows"] for step in steps} == {2}


def test_without_a_gpu_its_part_is_refused_with_the_reason() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="gpu needs a CUDA GPU, and PyTorch finds none"):
        run_benchmark(parse_benchmark_arguments(["--parts", "gpu"]))
