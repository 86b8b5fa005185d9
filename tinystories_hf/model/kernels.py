"""The CPU kernels of `kernels.cpp`, called on tensors.

Where `available()` says no, callers use PyTorch's own operations.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tinystories_hf.core import native

HEAD_DIMS = (4, 8, 16, 32, 48, 64)
# The cross-entropy takes tokens by so many side by side.
LANES = 16
# Positions are counted in 32 bits, in steps of `LANES`.
LONGEST = 2**31 - LANES
# What the cross-entropy returns, where it is not the place of a label outside the vocabulary.
_NO_MEMORY = -2


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


def kernels_available() -> bool:
    """Tell whether the kernels can be used."""
    return native.load_library("model/kernels.cpp") is not None


def in_main_memory(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has its numbers in main memory; a FakeTensor or DTensor has not."""
    return tensor.device.type == "cpu" and type(tensor) in (torch.Tensor, torch.nn.Parameter)


def can_read(tensor: torch.Tensor) -> bool:
    """Return whether a kernel may be called on a tensor: there are numbers, in a type it knows.

    There are none while PyTorch traces, compiles or transforms the code.
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
    """Return causal, unscaled attention of shape (batch, length, hidden) and its log-sums.

    `query`, `key` and `value` are fp32 of shape (batch, length, hidden), contiguous, with a head
    dimension of `HEAD_DIMS`; log-sums are (batch, heads, length).

    Raises:
        ValueError: a tensor or a setting is not as described.
        MemoryError: there is no memory for the kernel's buffers.
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
    """Return the gradients of query, key and value, from what `attention_forward` returned.

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
    """Return the loss of each token in nats, fp32; with the gradient, `logits` become theirs.

    `logits` is (vocabulary, tokens), fp32 or bf16, contiguous, tokens a multiple of `LANES`;
    `labels` is (tokens,), int64. A token of label -100 has no loss and no gradient.

    Raises:
        ValueError: a tensor is not as described.
        IndexError: a label is neither -100 nor in the vocabulary; `logits` are as they were.
        MemoryError: there is no memory for the kernel's buffers.
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
        raise MemoryError("there is no memory for the buffers of the cross-entropy")
    if result >= 0:
        # In the words of PyTorch.
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
        raise ValueError(f"window has to be positive and dropout from 0 to 1: {settings}")
    return _Attention(
        batch=batch,
        length=length,
        heads=heads,
        window=min(window, length),
        threads=torch.get_num_threads(),
        seed=seed,
        threshold=min(round(dropout * 2**32), 2**32 - 1),
        # Where all is dropped, all is 0.
        keep_scale=1 / (1 - dropout) if dropout < 1 else 0,
    )


def _attend(
    run: Any, struct: _Attention, shape: torch.Size, log_sums: torch.Tensor, **tensors: torch.Tensor
) -> None:
    """Call a kernel with pointers to its tensors, in its order: (batch, length, hidden) each."""
    sums = _pointer("log_sums", log_sums, torch.float32, (shape[0], struct.heads, shape[1]))
    pointers = [_pointer(name, x, torch.float32, shape) for name, x in tensors.items()]
    dimension = shape[2] // struct.heads
    if not run(ctypes.byref(struct), dimension, sums, *pointers):
        raise MemoryError("there is no memory for the buffers of the attention")


def _pointer(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Return the address of a tensor, from which the C++ takes `shape` numbers of `dtype`."""
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
        raise RuntimeError("the kernels are not available; ask available() first")
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
