from __future__ import annotations

import pytest
import torch

from tinystories_hf.core.device import device_type


def test_a_build_for_gpus_on_a_machine_without_one_trains_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of_a_cuda_build(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", of_a_cuda_build)
    assert device_type() == "cpu"
