"""What the machine offers a run: the device, the precision, the threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

Precision = Literal["no", "bf16", "fp16"]


def has_native_bf16() -> bool:
    """Tell whether bf16 is native: emulated it is slower than fp32."""
    kind = device_type()
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_tf32() -> bool:
    """Tell whether fp32 matrix products may be rounded to TF32, several times as fast."""
    return device_type() == "cuda" and torch.cuda.get_device_capability() >= (8, 0)


@contextmanager
def restoring_precision() -> Iterator[None]:
    """Leave fp32 products as they were: where TF32 is allowed, the Trainer switches it on."""
    backends: Any = torch.backends  # whose types do not know fp32_precision
    before = backends.fp32_precision
    try:
        yield
    finally:
        backends.fp32_precision = before


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute fp32 in fp32, whatever training allows itself."""
    backends: Any = torch.backends
    with restoring_precision():
        backends.fp32_precision = "ieee"
        yield


def reduce_in_fp32(accelerator: Any) -> None:
    """Let sharded training (FSDP2) in bf16 add gradients up, and return its loss, in fp32.

    As accelerate sets it up both are bf16, in which a loss near 2 has steps of 1/128.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def should_compile(torch_compile: bool | Literal["auto"]) -> bool:
    """Tell whether the blocks are to be compiled for training.

    On the CPU it does not pay: compiled blocks go without our kernel (docs/benchmarks.md).
    """
    return device_type() == "cuda" if torch_compile == "auto" else torch_compile


def device_type() -> str:
    """Return the kind of device that accelerate will choose, before it does."""
    # A CUDA build names CUDA on a machine without a GPU, too, unless asked whether it is there.
    found = torch.accelerator.current_accelerator(check_available=True)
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return "cpu" if found is None or on_cpu else found.type


@contextmanager
def sharing_cores() -> Iterator[None]:
    """Give each process of a launcher on the CPU its share of the cores.

    `accelerate launch` sets OMP_NUM_THREADS=1 unless told otherwise, which leaves all but one core
    idle where there is no GPU; any other value is somebody's choice and stays.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    before = torch.get_num_threads()
    if device_type() != "cpu" or not launched or os.environ.get("OMP_NUM_THREADS") != "1":
        yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        yield
    finally:
        torch.set_num_threads(before)
