"""The CPU kernels of `kernels.cpp`, compiled once for the machine and called on tensors.

Where there is no C++ compiler, `available()` says so and callers use PyTorch's own operations.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
HEAD_DIMS = (4, 8, 16, 32, 48, 64)
# The cross-entropy takes tokens by so many side by side.
LANES = 16


class AttentionSettings(NamedTuple):
    """What a call of the attention does: the same `seed` drops the same weights.

    A position sees itself and the `window` - 1 before it.
    """

    heads: int
    window: int
    dropout: float = 0.0
    seed: int = 0


class _Attention(ctypes.Structure):
    """The struct of the same name in `kernels.cpp`."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("threshold", ctypes.c_uint32),
        ("keep_scale", ctypes.c_float),
    )


@functools.cache
def available() -> bool:
    """Tell whether the kernels can be used; the first call builds them (4 s), or says why not."""
    try:
        _library()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning(
            "CPU kernels are not available (%s); attention and loss take PyTorch's own operations,"
            " which is several times slower. Install a C++ compiler (g++ or clang++ with OpenMP),"
            " or name one in CXX.",
            said.strip().splitlines()[0],
        )
        return False
    return True


def attention_forward(
    settings: AttentionSettings, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return causal, unscaled attention of shape (batch, length, hidden) and its log-sums.

    `query`, `key` and `value` are fp32 of shape (batch, length, hidden), contiguous, with a head
    dimension of `HEAD_DIMS`; log-sums are (batch, heads, length).
    """
    batch, length, hidden = query.shape
    output = torch.empty_like(query)
    log_sums = query.new_empty(batch, settings.heads, length)
    pointers = _pointers(query, key, value, output, log_sums)
    dimension = hidden // settings.heads
    done = _library().attention_forward(_struct(query, settings), dimension, *pointers)
    assert done, f"no kernel for heads of {dimension}"
    return output, log_sums


def attention_backward(
    settings: AttentionSettings,
    grad_output: torch.Tensor,
    output: torch.Tensor,
    log_sums: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of query, key and value, from what `attention_forward` returned."""
    grads = (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
    pointers = _pointers(query, key, value, output, log_sums, grad_output, *grads)
    dimension = query.shape[-1] // settings.heads
    done = _library().attention_backward(_struct(query, settings), dimension, *pointers)
    assert done, f"no kernel for heads of {dimension}"
    return grads


def cross_entropy_(
    logits: torch.Tensor, labels: torch.Tensor, *, with_gradient: bool
) -> torch.Tensor:
    """Return the loss of each token in nats, fp32; with the gradient, `logits` become theirs.

    `logits` is (vocabulary, tokens), fp32 or bf16, contiguous, tokens a multiple of `LANES`;
    a token whose label is negative has no loss and no gradient.
    """
    vocabulary, tokens = logits.shape
    assert tokens % LANES == 0, f"{tokens} tokens are not a multiple of {LANES}"
    assert labels.shape == (tokens,)
    losses = torch.empty(tokens)
    library = _library()
    run = {
        torch.float32: library.cross_entropy_float,
        torch.bfloat16: library.cross_entropy_bfloat16,
    }[logits.dtype]
    label_pointer, logit_pointer, loss_pointer = _pointers(labels, logits, losses)
    threads = torch.get_num_threads()
    run(vocabulary, tokens, threads, label_pointer, with_gradient, logit_pointer, loss_pointer)
    return losses


def _struct(query: torch.Tensor, settings: AttentionSettings) -> Any:
    batch, length, _ = query.shape
    return ctypes.byref(
        _Attention(
            batch=batch,
            length=length,
            heads=settings.heads,
            window=min(settings.window, length),
            threads=torch.get_num_threads(),
            seed=settings.seed,
            threshold=round(settings.dropout * 2**32),
            keep_scale=1 / (1 - settings.dropout),
        )
    )


def _pointers(*tensors: torch.Tensor) -> list[int]:
    for tensor in tensors:
        assert tensor.is_contiguous(), "the kernels take contiguous tensors"
    return [tensor.data_ptr() for tensor in tensors]


@functools.cache
def _library() -> ctypes.CDLL:
    """Load the library, building it where this machine has not yet.

    Raises:
        OSError: there is no compiler, or no place to build.
        subprocess.CalledProcessError: the compiler refused.
    """
    command = [_compiler(), *FLAGS]
    # For this very processor: a home directory may be shared between machines.
    identity = "\n".join([SOURCE.read_text(), *command, _version(command[0]), _processor()])
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    cached = caches / "tinystories_hf" / f"kernels-{name}.so"
    library = ctypes.CDLL(str(cached)) if cached.exists() else _build(command, cached)
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    settings = ctypes.POINTER(_Attention)
    library.attention_forward.argtypes = (settings, number, *[pointer] * 5)
    library.attention_backward.argtypes = (settings, number, *[pointer] * 9)
    for attention in (library.attention_forward, library.attention_backward):
        attention.restype = ctypes.c_bool
    for cross_entropy in (library.cross_entropy_float, library.cross_entropy_bfloat16):
        cross_entropy.argtypes = (*[number] * 3, pointer, ctypes.c_bool, pointer, pointer)
        cross_entropy.restype = None
    return library


def _build(command: list[str], cached: Path) -> ctypes.CDLL:
    """Compile and load the library; keep it for the next time where that is possible."""
    with tempfile.TemporaryDirectory() as work:
        fresh = Path(work) / cached.name
        _run([*command, str(SOURCE), "-o", str(fresh)])
        with contextlib.suppress(OSError):  # a home that cannot be written: built again next time
            cached.parent.mkdir(parents=True, exist_ok=True)
            aside = cached.with_suffix(f".{os.getpid()}")
            shutil.copy(fresh, aside)
            aside.replace(cached)
        return ctypes.CDLL(str(fresh))


def _compiler() -> str:
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    raise OSError(f"there is no compiler {named}" if named else "there is no C++ compiler")


def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _processor() -> str:
    """Return what tells the instruction sets of processors apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    telling = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(telling)}))
