"""Fused linear cross-entropy: the loss of the head without the logits of the whole batch.

A token has 50,257 logits for 64 hidden values: a batch of 80 rows of 512 tokens would take 8.2 GB
in fp32, and as much again for the gradient. Here the logits are computed for a few tokens at a
time, and their gradient right after, so that nothing is computed twice (as in Liger-Kernel's fused
linear cross-entropy).
"""

from __future__ import annotations

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
# Bytes of logits held at once. On the CPU they stay in the last-level cache; on a GPU there must be
# enough of them to keep it busy.
CHUNK_BYTES = {"cpu": 13 * 2**20, "cuda": 2**29}


def causal_lm_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean next-token loss in nats, as Transformers' `GPTNeoForCausalLM` defines it.

    Args:
        hidden_states: the input of the head, (batch, length, hidden).
        weight: of the head, (vocabulary, hidden).
        labels: integers (batch, length), not shifted; -100 is ignored.
        num_items_in_batch: the divisor of the sum, for gradient accumulation over several batches;
            by default the number of labels that are not ignored.
        shift_labels: labels that are shifted already, used instead of `labels`.

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
        hidden_states, weight, targets.flatten(), _head_dtype(hidden_states)
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
    return _by_chunks(hidden_states.to(dtype), weight.to(dtype), labels, with_gradient=False)[0]


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
    ) -> torch.Tensor:
        wanted = any(ctx.needs_input_grad)
        with torch.autocast(hidden_states.device.type, enabled=False):
            losses, *grads = _by_chunks(
                hidden_states.to(dtype), weight.to(dtype), labels, with_gradient=wanted
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
        return (*grads, None, None)


def _by_chunks(
    hidden_states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, *, with_gradient: bool
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
    one = _kernel_chunk if kernels.can_read(weight) else _torch_chunk
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
    return losses, grad_states, grad_weight


def chunk_tokens(weight: torch.Tensor) -> int:
    """Return how many tokens' logits are computed at a time, a multiple of the kernel's vectors."""
    chunk = CHUNK_BYTES.get(weight.device.type, 2**29) // max(
        1, len(weight) * weight.element_size()
    )
    return max(kernels.LANES, chunk // kernels.LANES * kernels.LANES)


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
