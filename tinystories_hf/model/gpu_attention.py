"""Attention on a GPU: which implementations of PyTorch may run, and what they require.

For bf16 and fp16 the fused implementations require head dimensions that are multiples of 8; XS has
4. Without them PyTorch falls back to one that holds all scores in fp32
(tests/model/test_gpu_memory.py counts both). On the CPU PyTorch chooses by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinystories_hf.model.attention_mask import seen_keys

HEAD_MULTIPLE = 8
HALF = (torch.bfloat16, torch.float16)
# Not cuDNN, which some versions prefer on an H100: one choice for all versions and cards. The last
# one holds all scores, and is only used where no other can run (see `runs_fused`).
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# The arguments of PyTorch's flash attention that are used here. The operation is not public.
_ARGUMENTS = (
    *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p"),
    *("is_causal", "return_debug_mask", "scale", "window_size_left", "window_size_right"),
)
# The largest error of flash attention in bf16 relative to fp32 that passes its check; a window that
# is off by one position has more than 0.04.
_TOLERANCE = 0.02


def on_gpu(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is on a CUDA device."""
    return tensor.device.type == "cuda"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    *,
    is_causal: bool,
) -> torch.Tensor:
    """Return unscaled attention, (batch, heads, queries, head_dim), of tensors of such shapes.

    On a GPU heads in half precision are filled up with zeros, which changes no score.
    """
    head_dim = query.shape[-1]
    if on_gpu(query) and query.dtype in HALF:
        query, key, value = (_filled_up(x) for x in (query, key, value))
    with sdpa_kernel(BACKENDS) if on_gpu(query) else nullcontext():
        output = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=1.0
        )
    return output[..., :head_dim]


def attend_in_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, dropout: float
) -> torch.Tensor:
    """The same for rows without a mask whose positions attend to `window` keys, in flash attention.

    It skips the keys outside the window; other implementations compute and discard their scores.
    For half precision on a GPU where `has_flash_window()`.
    """
    length, head_dim = query.shape[-2:]
    query, key, value = (_filled_up(x).transpose(1, 2) for x in (query, key, value))
    output: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, None, None, length, length, dropout, True, False,
        scale=1.0, window_size_left=window - 1, window_size_right=0,
    )[0]  # fmt: skip
    return output.transpose(1, 2)[..., :head_dim]


def _filled_up(heads: torch.Tensor) -> torch.Tensor:
    return functional.pad(heads, (0, -heads.shape[-1] % HEAD_MULTIPLE))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_flash_window() -> bool:
    """Return whether PyTorch's flash attention has a window on the current GPU, and it is right."""
    return _checked_flash_window()


@functools.cache
def _checked_flash_window() -> bool:
    is_new_enough = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return is_new_enough and has_known_signature() and computes_the_window(torch.device("cuda"))


def has_known_signature() -> bool:
    """Return whether the private operation of the installed PyTorch has the arguments used here."""
    operation = getattr(torch.ops.aten, "_flash_attention_forward", None)
    if operation is None:
        return False
    schema = operation.default._schema
    names = [argument.name for argument in schema.arguments]
    given = len(_ARGUMENTS) - 3  # the last three are given by name
    return (
        tuple(names[:given]) == _ARGUMENTS[:given]
        and set(_ARGUMENTS[given:]) <= set(names[given:])
        and schema.returns[0].name == "output"
    )


def computes_the_window(device: torch.device) -> bool:
    """Return whether `attend_in_window` and its gradients are right on a device, on one example."""
    length, window = 300, 100
    drawn = torch.randn(4, 1, 2, length, 4, generator=torch.Generator().manual_seed(0))
    seen = seen_keys(length, length, window, 0, device)

    def right(heads: list[torch.Tensor]) -> torch.Tensor:
        return attend(heads[0], heads[1], heads[2], seen, 0.0, is_causal=False)

    def ours(heads: list[torch.Tensor]) -> torch.Tensor:
        return attend_in_window(heads[0], heads[1], heads[2], window, 0.0)

    try:
        exact = _with_gradients(right, drawn.to(device))
        found = _with_gradients(ours, drawn.to(device, torch.bfloat16))
    except (RuntimeError, TypeError):
        return False
    return all(
        bool((a - b).norm() < _TOLERANCE * b.norm()) for a, b in zip(found, exact, strict=True)
    )


def _with_gradients(
    attention: Callable[[list[torch.Tensor]], torch.Tensor], drawn: torch.Tensor
) -> list[torch.Tensor]:
    """Return the output and the gradients of three inputs in fp32, given them and the upstream."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(drawn.device.type, enabled=False),
    ):
        inputs = [each.clone().requires_grad_() for each in drawn[:3]]
        output = attention(inputs)
        grads = torch.autograd.grad(output, inputs, drawn[3])
    return [each.detach().float() for each in (output, *grads)]


def runs_fused(head_dim: int, dtype: torch.dtype, device: torch.device, *, masked: bool) -> bool:
    """Return whether a fused implementation can train such heads, with a mask or causally."""
    if dtype in HALF:
        head_dim += -head_dim % HEAD_MULTIPLE
    heads = torch.empty(1, 1, 16, head_dim, dtype=dtype, device=device, requires_grad=True)
    mask = torch.zeros(1, 1, 16, 16, dtype=dtype, device=device) if masked else None
    asked = SDPAParams(heads, heads, heads, mask, 0.1, not masked, False)
    return can_use_flash_attention(asked) or can_use_efficient_attention(asked)
