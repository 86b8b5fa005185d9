"""The CPU kernels of `kernels.cpp`, called on tensors.

Where `available()` says no, callers use PyTorch's own operations.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import torch

from tinystories_hf import native

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


def available() -> bool:
    """Tell whether the kernels can be used."""
    return native.load("kernels.cpp") is not None


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
    library = native.load("kernels.cpp")
    assert library is not None, "ask available() first"
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
