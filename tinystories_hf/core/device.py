"""The device, the precision and the threads that the machine offers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

Precision = Literal["no", "bf16", "fp16"]


def has_native_bf16() -> bool:
    """Return whether the device computes bf16 natively; emulated bf16 is slower than fp32."""
    kind = device_type()
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_tf32() -> bool:
    """Return whether the GPU has TF32, which is several times as fast as fp32."""
    return device_type() == "cuda" and torch.cuda.get_device_capability() >= (8, 0)


@contextmanager
def restoring_precision() -> Iterator[None]:
    """Restore the fp32 precision afterwards: the Trainer enables TF32 for the whole process."""
    backends: Any = torch.backends  # its type stubs lack fp32_precision
    before = backends.fp32_precision
    try:
        yield
    finally:
        backends.fp32_precision = before


@contextmanager
def full_precision() -> Iterator[None]:
    """Disable TF32 inside the block."""
    backends: Any = torch.backends
    with restoring_precision():
        backends.fp32_precision = "ieee"
        yield


def reduce_in_fp32(accelerator: Any) -> None:
    """Reduce gradients and return the loss in fp32 in sharded training (FSDP2) with bf16.

    accelerate sets both to bf16, in which a loss near 2 has steps of 1/128.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def should_compile(torch_compile: bool | Literal["auto"]) -> bool:
    """Return whether the blocks are compiled for training.

    Not on the CPU: compiled blocks cannot use this package's kernel (docs/benchmarks.md).
    """
    return device_type() == "cuda" if torch_compile == "auto" else torch_compile


def device_type() -> str:
    """Return the device type that accelerate will choose, such as `cuda` or `cpu`."""
    # Without check_available a CUDA build returns CUDA on a machine without a GPU too.
    found = torch.accelerator.current_accelerator(check_available=True)
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return "cpu" if found is None or on_cpu else found.type


@contextmanager
def sharing_cores() -> Iterator[None]:
    """Give each launched process on the CPU its share of the cores.

    `accelerate launch` sets OMP_NUM_THREADS=1 by default, which leaves all but one core idle
    without a GPU. Any other value is the user's choice and is kept.
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
