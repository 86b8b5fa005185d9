"""The device, the precision and the threads that the machine offers."""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

Precision = Literal["no", "bf16", "fp16"]
EVALUATION_BATCH_ON_GPU = 64


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
    """Restore the fp32 precision afterwards: the Trainer enables TF32 for the whole process.

    PyTorch has a setting for everything and one for each kind of operation, which inherits it until
    it is set. torch.compile sets that of matrix products to what it inherits, from where on the
    general setting no longer reaches them.
    """
    general: Any = torch.backends  # its type stubs lack fp32_precision
    products: Any = torch.backends.cuda.matmul
    before, of_products = general.fp32_precision, products.fp32_precision
    try:
        yield
    finally:
        general.fp32_precision = before
        products.fp32_precision = "none" if of_products == before else of_products


@contextmanager
def full_precision() -> Iterator[None]:
    """Disable TF32 inside the block, also after a compilation (see `restoring_precision`)."""
    general: Any = torch.backends
    products: Any = torch.backends.cuda.matmul
    with restoring_precision():
        general.fp32_precision = products.fp32_precision = "ieee"
        yield


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Use only algorithms whose results are the same bits each time, if `enabled`."""
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    # cuBLAS requires it, and reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def reduce_in_fp32(accelerator: Any) -> None:
    """Reduce gradients and return the loss in fp32 in sharded training (FSDP2) with bf16.

    accelerate sets both to bf16, in which a loss near 2 has steps of 1/128.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )


def should_compile(torch_compile: bool | Literal["auto"], kind: str | None = None) -> bool:
    """Return whether the blocks are compiled for training, by default on the device that is found.

    `auto`: on a GPU, if the machine can compile. Not on the CPU: compiled blocks cannot use this
    package's kernel (docs/benchmarks.md).
    """
    if torch_compile != "auto":
        return torch_compile
    return (kind or device_type()) == "cuda" and missing_for_compilation() is None


def missing_for_compilation() -> str | None:
    """Return what torch.compile needs and this machine lacks, as a message, or None.

    PyTorch's compilers, Inductor and Triton, build C extensions of Python while they run.
    """
    named = shlex.split(os.environ.get("CC") or "")[:1]
    if not any(shutil.which(name) for name in named or ["gcc", "clang"]):
        tried = f" as CC={named[0]}" if named else ""
        return f"no C compiler was found{tried}; install gcc or clang"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers (Python.h) are missing; install them, such as python3-dev"
    return None


def evaluation_batch(asked: int | None, on_cpu: int) -> int:
    """Return how many rows are evaluated at once; fewer leave a GPU waiting for its host."""
    return asked or (EVALUATION_BATCH_ON_GPU if device_type() == "cuda" else on_cpu)


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
