"""GPT-Neo's attention without its score matrices, behind `attn_implementation="sdpa"`.

GPT-Neo does not divide scores by the root of the head dimension, and its local layers see only the
last `window_size` positions. Stock Transformers has an eager implementation, which holds every
score several times over, and one for flash_attention_2, which forgets the window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.models.gpt_neo import modeling_gpt_neo

from tinystories_hf import kernels
from tinystories_hf.kernels import AttentionSettings

# Heads wider than this are no faster in the kernel than in PyTorch, unless weights are dropped,
# for which PyTorch on the CPU has the slow path only (docs/benchmarks.md).
WIDEST_FAST_HEAD = 32


class _WindowedAttention(torch.autograd.Function):
    """Causal, unscaled attention over a window, on the CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        settings: AttentionSettings,
    ) -> torch.Tensor:
        output, log_sums = kernels.attention_forward(settings, query, key, value)
        ctx.settings = settings
        ctx.save_for_backward(output, log_sums, query, key, value)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = kernels.attention_backward(
            ctx.settings, grad_output.contiguous(), *ctx.saved_tensors
        )
        return (*grads, None)


class GPTNeoSdpaAttention(modeling_gpt_neo.GPTNeoSelfAttention):
    """The attention of a block; weights and their names are those of the eager one.

    Whole rows on the CPU go through our kernel. Padding, a cache, other devices and other head
    dimensions go through `scaled_dot_product_attention` with the layer's own mask.
    """

    def __init__(self, config: Any, attention_type: str, layer_id: int | None = None) -> None:
        super().__init__(config, attention_type, layer_id)
        positions = config.max_position_embeddings
        self.window = config.window_size if attention_type == "local" else positions

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        layer_past: Cache | None = None,
        output_attentions: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Return (batch, length, hidden) and no attention weights.

        Raises:
            ValueError: attention weights are asked for; only eager attention has them.
        """
        if output_attentions:
            raise ValueError(
                "sdpa attention has no weights to give; load the model with"
                ' attn_implementation="eager"'
            )
        query, key, value = (
            project(hidden_states) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.attn_dropout.p if self.training else 0.0
        if layer_past is None and attention_mask is None and self._has_kernel(query, dropout):
            mixed = self._kernel(query, key, value, dropout)
        else:
            mixed = self._sdpa(query, key, value, attention_mask, layer_past, dropout)
        return self.resid_dropout(self.out_proj(mixed)), None

    def _has_kernel(self, query: torch.Tensor, dropout: float) -> bool:
        return (
            kernels.in_main_memory(query)
            and query.dtype in (torch.float32, torch.bfloat16)
            and self.head_dim in kernels.HEAD_DIMS
            and (self.head_dim <= WIDEST_FAST_HEAD or dropout > 0)
            and not torch.compiler.is_compiling()
            and kernels.available()
        )

    def _kernel(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        """Attend in fp32; what is dropped follows from torch's default generator."""
        seed = int(torch.randint(2**63 - 1, ())) if dropout else 0
        settings = AttentionSettings(self.num_heads, self.window, dropout, seed)
        wide = (x.float().contiguous() for x in (query, key, value))
        mixed: torch.Tensor = _WindowedAttention.apply(*wide, settings)  # type: ignore[no-untyped-call]
        return mixed.to(value.dtype)

    def _sdpa(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        layer_past: Cache | None,
        dropout: float,
    ) -> torch.Tensor:
        query, key, value = (
            self._split_heads(x, self.num_heads, self.head_dim) for x in (query, key, value)
        )
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_id)
        mask, is_causal = self._mask(query.shape[-2], key.shape[-2], attention_mask)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=1.0
        )
        merged: torch.Tensor = self._merge_heads(mixed, self.num_heads, self.head_dim)
        return merged

    def _mask(
        self, queries: int, keys: int, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, bool]:
        """Return the mask, True where a key is seen, and whether causality alone says it all."""
        if attention_mask is None and keys <= self.window and queries in (1, keys):
            return None, queries > 1
        seen = self.bias[:, :, keys - queries : keys, :keys]
        if attention_mask is None:
            return seen, False
        if attention_mask.dtype == torch.bool:
            return seen & attention_mask, False
        return torch.where(seen, attention_mask, torch.finfo(attention_mask.dtype).min), False


# Where Transformers looks up the attention of a block. Nothing changes for its own classes: they
# refuse the word before they come here.
modeling_gpt_neo.GPT_NEO_ATTENTION_CLASSES["sdpa"] = GPTNeoSdpaAttention
