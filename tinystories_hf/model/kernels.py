"""The CPU kernels of `kernels.cpp`, called on tensors.

If `kernels_available()` is False, callers use PyTorch operations.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tinystories_hf.core import native

HEAD_DIMS = (4, 8, 16, 32, 48, 64)
# The cross-entropy processes so many tokens side by side.
LANES = 16
# Positions are 32-bit integers, in steps of `LANES`.
LONGEST = 2**31 - LANES
# The return value of the cross-entropy if its buffers cannot be allocated.
_NO_MEMORY = -2


class AttentionSettings(NamedTuple):
    """The settings of an attention call; the same `seed` gives the same dropout.

    A position attends to itself and to the `window` - 1 positions before it.
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


def kernels_available() -> bool:
    """Return whether the kernels are compiled and loaded."""
    return native.load_library("model/kernels.cpp") is not None


def in_main_memory(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has values in main memory, unlike a FakeTensor or DTensor."""
    return tensor.device.type == "cpu" and type(tensor) in (torch.Tensor, torch.nn.Parameter)


def can_read(tensor: torch.Tensor) -> bool:
    """Return whether a kernel may be called on a tensor: it has values, in a supported dtype.

    It has none while PyTorch traces, compiles or transforms the code.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and in_main_memory(tensor)
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and kernels_available()
    )


def attention_forward(
    settings: AttentionSettings, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return causal, unscaled attention (batch, length, hidden) and its log-sum-exps.

    `query`, `key` and `value` are fp32 of shape (batch, length, hidden), contiguous, with a head
    dimension in `HEAD_DIMS`; the log-sum-exps are (batch, heads, length).

    Raises:
        ValueError: a tensor or a setting is not as described.
        MemoryError: the kernel's buffers cannot be allocated.
    """
    struct = _struct(settings, query)
    output = torch.empty_like(query)
    log_sums = query.new_empty(struct.batch, struct.heads, struct.length)
    _attend(
        _library().attention_forward, struct, query.shape,
        query=query, key=key, value=value, output=output, log_sums=log_sums,
    )  # fmt: skip
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
    """Return the gradients of query, key and value, given the results of `attention_forward`.

    Raises:
        ValueError, MemoryError: as `attention_forward`.
    """
    grads = (torch.empty_like(query), torch.empty_like(query), torch.empty_like(query))
    _attend(
        _library().attention_backward, _struct(settings, query), query.shape,
        query=query, key=key, value=value, output=output, log_sums=log_sums,
        grad_output=grad_output, grad_query=grads[0], grad_key=grads[1], grad_value=grads[2],
    )  # fmt: skip
    return grads


def cross_entropy_(
    logits: torch.Tensor, labels: torch.Tensor, *, with_gradient: bool
) -> torch.Tensor:
    """Return the loss of each token in nats, fp32; `with_gradient` overwrites `logits` with theirs.

    `logits` is (vocabulary, tokens), fp32 or bf16, contiguous, tokens a multiple of `LANES`;
    `labels` is (tokens,), int64. A token with label -100 has zero loss and gradient.

    Raises:
        ValueError: a tensor is not as described.
        IndexError: a label is neither -100 nor in the vocabulary; `logits` are unchanged.
        MemoryError: the kernel's buffers cannot be allocated.
    """
    library = _library()
    kernels = {
        torch.float32: library.cross_entropy_float,
        torch.bfloat16: library.cross_entropy_bfloat16,
    }
    if logits.dim() != 2 or logits.shape[1] % LANES or logits.dtype not in kernels:
        raise ValueError(
            "logits: the kernel takes fp32 or bf16 of shape (vocabulary, tokens), tokens a"
            f" multiple of {LANES}, not {logits.dtype} of shape {tuple(logits.shape)}"
        )
    vocabulary, tokens = logits.shape
    losses = torch.empty(tokens, dtype=torch.float32, device="cpu")
    label_pointer = _pointer("labels", labels, torch.int64, (tokens,))
    logit_pointer = _pointer("logits", logits, logits.dtype, (vocabulary, tokens))
    result = kernels[logits.dtype](
        vocabulary, tokens, torch.get_num_threads(), label_pointer, with_gradient, logit_pointer,
        losses.data_ptr(),
    )  # fmt: skip
    if result == _NO_MEMORY:
        raise MemoryError("the buffers of the cross-entropy cannot be allocated")
    if result >= 0:
        # PyTorch's message.
        raise IndexError(f"Target {labels[result].item()} is out of bounds.")
    return losses


def _struct(settings: AttentionSettings, query: torch.Tensor) -> _Attention:
    heads, window, dropout, seed = settings
    if query.dim() != 3 or heads < 1 or query.shape[2] not in [heads * dim for dim in HEAD_DIMS]:
        raise ValueError(
            f"query: the kernel takes (batch, length, heads * dimension) with {heads} heads of a"
            f" dimension in {HEAD_DIMS}, not {tuple(query.shape)}"
        )
    batch, length, _ = query.shape
    if length > LONGEST:
        raise ValueError(f"query: {length} positions are more than the kernel's {LONGEST}")
    if window < 1 or not 0 <= dropout <= 1:
        raise ValueError(f"window must be positive and dropout in [0, 1]: {settings}")
    return _Attention(
        batch=batch,
        length=length,
        heads=heads,
        window=min(window, length),
        threads=torch.get_num_threads(),
        seed=seed,
        threshold=min(round(dropout * 2**32), 2**32 - 1),
        # With dropout 1 everything is 0.
        keep_scale=1 / (1 - dropout) if dropout < 1 else 0,
    )


def _attend(
    run: Any, struct: _Attention, shape: torch.Size, log_sums: torch.Tensor, **tensors: torch.Tensor
) -> None:
    """Call a kernel with pointers to its tensors (batch, length, hidden), in its order."""
    sums = _pointer("log_sums", log_sums, torch.float32, (shape[0], struct.heads, shape[1]))
    pointers = [_pointer(name, x, torch.float32, shape) for name, x in tensors.items()]
    dimension = shape[2] // struct.heads
    if not run(ctypes.byref(struct), dimension, sums, *pointers):
        raise MemoryError("the buffers of the attention cannot be allocated")


def _pointer(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Return the address of a contiguous CPU tensor of this shape and dtype."""
    if (
        not in_main_memory(tensor)
        or tensor.layout != torch.strided
        or tensor.dtype != dtype
        or tensor.shape != torch.Size(shape)
        or not tensor.is_contiguous()
        or tensor.is_neg()
        or (tensor.numel() and not tensor.data_ptr())
    ):
        raise ValueError(
            f"{name}: the kernel takes a contiguous {dtype} tensor of shape {tuple(shape)} on the"
            f" CPU, not {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
            + (f", strides {tensor.stride()}" if tensor.layout == torch.strided else "")
        )
    return tensor.data_ptr()


@functools.cache
def _library() -> ctypes.CDLL:
    library = native.load_library("model/kernels.cpp")
    if library is None:
        raise RuntimeError("the kernels are not available; check kernels_available() first")
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    settings = ctypes.POINTER(_Attention)
    library.attention_forward.argtypes = (settings, number, *[pointer] * 5)
    library.attention_backward.argtypes = (settings, number, *[pointer] * 9)
    for attention in (library.attention_forward, library.attention_backward):
        attention.restype = ctypes.c_bool
    for cross_entropy in (library.cross_entropy_float, library.cross_entropy_bfloat16):
        cross_entropy.argtypes = (*[number] * 3, pointer, ctypes.c_bool, pointer, pointer)
        cross_entropy.restype = number
    return library
