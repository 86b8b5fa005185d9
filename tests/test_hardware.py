from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tinystories_hf.arguments import Arguments
from tinystories_hf.hardware import choose_precision, device_type

Parse = Callable[..., Arguments]


def test_a_build_for_gpus_on_a_machine_without_one_trains_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_a_cuda_build(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", of_a_cuda_build)
    assert device_type() == "cpu"


@pytest.mark.parametrize(
    ("asked", "launcher", "hardware", "expected"),
    [
        ("true", "no", False, "bf16"),
        ("false", "bf16", True, "no"),
        ("auto", "no", True, "bf16"),
        ("auto", "no", False, "no"),
        ("auto", "fp16", True, "fp16"),
        ("auto", "bf16", False, "bf16"),
    ],
)
def test_precision_is_what_is_asked_for_then_the_launchers_then_the_hardwares(
    tiny_arguments: Parse,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    launcher: str,
    hardware: bool,
    expected: str,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    monkeypatch.setattr("tinystories_hf.hardware.hardware_has_bf16", lambda: hardware)
    assert choose_precision(tiny_arguments("--bf16", asked).training) == expected
