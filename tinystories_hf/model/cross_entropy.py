"""Fused linear cross-entropy: the loss of the head without the logits of the whole batch.

A token has 50,257 logits for 64 hidden values: a batch of 80 rows of 512 tokens would take 8.2 GB
in fp32, and as much again for the gradient. Here the logits are computed for a few tokens at a
time, and their gradient right after, so that nothing is computed twice (as in Liger-Kernel's fused
linear cross-entropy).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook

from tinystories_hf.model import kernels

IGNORED = -100
INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32),
)
# Bytes of logits held at once. On the CPU they stay in the last-level cache.
CPU_CHUNK_BYTES = 13 * 2**20
# On other devices there must be enough of them to keep the device busy, and they must leave room:
# without compilation the loss takes 7 times their size. The limits are an estimate.
LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES = 2**25, 2**29
CHUNKS_IN_FREE_MEMORY = 16

# Takes hidden states, the weight, labels and whether the gradient is wanted; returns the losses and
# the gradient of the logits, (vocabulary, tokens).
_Chunk = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor]
]


def causal_lm_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    *,
    compiled: bool = False,
) -> torch.Tensor:
    """Return the mean next-token loss in nats, as Transformers' `GPTNeoForCausalLM` defines it.

    Args:
        hidden_states: the input of the head, (batch, length, hidden).
        weight: of the head, (vocabulary, hidden).
        labels: integers (batch, length), not shifted; -100 is ignored.
        num_items_in_batch: the divisor of the sum, for gradient accumulation over several batches;
            by default the number of labels that are not ignored.
        shift_labels: labels that are shifted already, used instead of `labels`.
        compiled: compile the loss and its gradient for this number of tokens, where the CPU's
            kernel cannot be used. It then takes a quarter of the memory traffic (counted, not
            measured on a GPU).

    Raises:
        IndexError: a label is neither -100 nor in the vocabulary (on a GPU: the device's assert).
        RuntimeError, ValueError: labels are not integers, or do not match the hidden states.
    """
    hidden_states = hidden_states.flatten(0, -2)
    if shift_labels is None:
        labels = _as_targets(labels, hidden_states)
        targets = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    else:
        targets = _as_targets(shift_labels, hidden_states)
    total: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_states, weight, targets.flatten(), _head_dtype(hidden_states), compiled
    )
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORED).sum()
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


@torch.no_grad()
def token_losses(
    hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the loss of each token in nats, fp32 or wider, (tokens,).

    `hidden_states` are (tokens, hidden); `labels` (tokens,) are the next tokens.

    Raises:
        IndexError, RuntimeError, ValueError: as `causal_lm_loss`.
    """
    labels = _as_targets(labels, hidden_states)
    dtype = _head_dtype(hidden_states)
    states, weight = hidden_states.to(dtype), weight.to(dtype)
    return _by_chunks(states, weight, labels, with_gradient=False, compiled=False)[0]


def _as_targets(labels: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return labels as int64 on the device of the hidden states (tokens, hidden)."""
    if labels.dtype not in INTEGERS:
        raise RuntimeError(f"labels must be integers such as int64, not {labels.dtype}")
    if labels.numel() != len(hidden_states):
        raise ValueError(
            f"there are {len(hidden_states)} tokens but labels of shape {tuple(labels.shape)}"
        )
    return labels.to(hidden_states.device, torch.int64)


def is_plain_linear(head: nn.Module) -> bool:
    """Return whether a head is a plain product with its weight, so that it need not be called.

    It is not if it is an adapter, quantized, parametrized, offloaded, or has hooks. A head tied to
    the embedding may be sharded (FSDP2): its weight is gathered along with the hidden states.
    """
    is_sharded = isinstance(head, FSDPModule)
    known = type(head).__bases__[-1] if is_sharded else type(head)
    return (
        known is nn.Linear
        and head.bias is None
        and head.weight.is_floating_point()
        and not head.weight.is_meta
        and (is_sharded or type(head.weight) is nn.Parameter)
        and not is_hooked(head, known_hooks=int(is_sharded))
    )


def is_hooked(module: nn.Module, known_hooks: int = 0) -> bool:
    """Return whether calling a module does more than its class's `forward`.

    Up to `known_hooks` forward hooks, and as many pre-hooks, are known to have no effect here.
    """
    return bool(
        len(module._forward_hooks) > known_hooks
        or len(module._forward_pre_hooks) > known_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )


def _head_dtype(hidden_states: torch.Tensor) -> torch.dtype:
    """Return the dtype that the head would compute in, under autocast too."""
    kind = hidden_states.device.type
    return (
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_states.dtype
    )


class _LinearCrossEntropy(torch.autograd.Function):
    """The summed loss; the gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        dtype: torch.dtype,
        compiled: bool,
    ) -> torch.Tensor:
        wanted = any(ctx.needs_input_grad)
        with torch.autocast(hidden_states.device.type, enabled=False):
            states, weight_now = hidden_states.to(dtype), weight.to(dtype)
            losses, *grads = _by_chunks(
                states, weight_now, labels, with_gradient=wanted, compiled=compiled
            )
        if wanted:
            ctx.save_for_backward(*grads)
            ctx.dtypes = hidden_states.dtype, weight.dtype
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = (
            grad.mul_(grad_total).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*grads, None, None, None)


def _by_chunks(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    with_gradient: bool,
    compiled: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return losses (tokens,) and the gradients of states and weight; all but states at least fp32.

    The gradients are empty if none is requested.
    """
    tokens = len(labels)
    wide = torch.promote_types(weight.dtype, torch.float32)
    losses = torch.empty(tokens, device=weight.device, dtype=wide)
    grad_states = torch.empty_like(hidden_states) if with_gradient else losses.new_empty(0)
    grad_weight = torch.zeros_like(weight, dtype=wide) if with_gradient else losses.new_empty(0)
    chunk = chunk_tokens(weight)
    one: _Chunk = _kernel_chunk if kernels.can_read(weight) else _torch_chunk
    if one is _torch_chunk and compiled and with_gradient and tokens:
        _check_labels(labels, len(weight))
        chunk = -(-tokens // -(-tokens // chunk))  # one size for all chunks is compiled once
        one = functools.partial(_compiled_chunk, size=chunk)
    for start in range(0, tokens, chunk):
        part = slice(start, start + chunk)
        states = hidden_states[part]
        losses[part], gradient = one(states, weight, labels[part], with_gradient)
        if with_gradient:
            grad_states[part] = gradient.t() @ weight
            if weight.dtype == wide:
                grad_weight.addmm_(gradient, states)
            else:
                grad_weight += gradient @ states
        del gradient  # or it would still be held while the next chunk is computed
    return losses, grad_states, grad_weight


def chunk_tokens(weight: torch.Tensor) -> int:
    """Return how many tokens' logits are computed at a time, a multiple of the kernel's vectors."""
    size = CPU_CHUNK_BYTES if weight.device.type == "cpu" else _device_chunk_bytes(weight.device)
    chunk = size // max(1, len(weight) * weight.element_size())
    return max(kernels.LANES, chunk // kernels.LANES * kernels.LANES)


def _device_chunk_bytes(device: torch.device) -> int:
    """Return how many bytes of logits an accelerator holds at once.

    Deterministic runs always use the least, since the size decides in which order sums are taken.
    """
    if torch.are_deterministic_algorithms_enabled() or device.type != "cuda":
        return LEAST_CHUNK_BYTES
    return chunk_bytes_for(_free_memory(device))


@functools.cache
def _free_memory(device: torch.device) -> int:
    """Return the bytes that were free at the first call: later sizes would be compiled again."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def chunk_bytes_for(free: int) -> int:
    """Return the bytes of logits to hold at once if so many bytes are free: a power of two."""
    share = max(1, free // CHUNKS_IN_FREE_MEMORY)
    return min(MOST_CHUNK_BYTES, max(LEAST_CHUNK_BYTES, 1 << (share.bit_length() - 1)))


def _check_labels(labels: torch.Tensor, vocabulary: int) -> None:
    """Raise an IndexError for a label outside the vocabulary; a GPU reports it later by itself."""
    allowed = (labels == IGNORED) | ((labels >= 0) & (labels < vocabulary))
    if labels.device.type == "cuda":
        torch._assert_async(allowed.all(), "a label is outside the vocabulary")
    elif not allowed.all():
        raise IndexError(f"Target {labels[~allowed][0]} is out of bounds.")


def _kernel_chunk(
    states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of a few tokens and the gradient of their logits, (vocabulary, tokens).

    With the vocabulary first the product of the XS head is faster on the CPU (docs/benchmarks.md,
    the head's products), since the library divides its work along that dimension.
    """
    tokens = len(labels)
    missing = -tokens % kernels.LANES
    if missing:
        states = functional.pad(states, (0, 0, 0, missing))
        labels = functional.pad(labels, (0, missing), value=IGNORED)
    logits = weight @ states.t()
    losses = kernels.cross_entropy_(logits, labels.contiguous(), with_gradient=with_gradient)
    return losses[:tokens], logits[:, :tokens]


def _torch_chunk(
    states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with PyTorch operations."""
    logits = states @ weight.t()
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="none")
    if not with_gradient:
        return losses, logits.t()
    gradient = wide.softmax(-1)
    counted = labels != IGNORED
    gradient[torch.arange(len(labels), device=labels.device), labels.clamp(min=0)] -= 1
    gradient *= counted[:, None]
    return losses, gradient.to(logits.dtype).t()


def _compiled_chunk(
    states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    _with_gradient: bool,
    *,
    size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with one compiled function, always with the gradient.

    A chunk of fewer than `size` tokens is filled up, so that it is compiled once.
    """
    tokens = len(labels)
    states = functional.pad(states, (0, 0, 0, size - tokens))
    labels = functional.pad(labels, (0, size - tokens), value=IGNORED)
    logits = states @ weight.t()
    losses = _compiled_loss()(logits, labels)
    return losses[:tokens], logits[:tokens].t()


@functools.cache
def _compiled_loss() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return torch.compile(_loss_and_gradient_, dynamic=False)


def _loss_and_gradient_(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the losses (tokens,), and replace the logits (tokens, vocabulary) by their gradient.

    The label is found by comparison instead of by index, so that everything is one pass over the
    logits, written in place. Compiled: without compilation it would take several copies of them.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_sums = wide.logsumexp(-1)
    is_label = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
    counted = labels != IGNORED
    losses = torch.where(counted, log_sums - (wide * is_label).sum(-1), 0.0)
    gradient = (wide - log_sums[:, None]).exp() - is_label.to(wide.dtype)
    logits.copy_(gradient * counted[:, None])
    return losses
