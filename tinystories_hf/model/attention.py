"""GPT-Neo's attention without score matrices, as `attn_implementation="sdpa"`.

GPT-Neo does not scale scores by the root of the head dimension, and its local layers attend only to
the last `window_size` positions. Transformers has an eager implementation, which stores every score
several times and assumes that the queries are the last of the keys, and one with flash_attention_2,
which ignores the window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import GPTNeoConfig
from transformers.cache_utils import Cache
from transformers.models.gpt_neo import modeling_gpt_neo

from tinystories_hf.config.model_arguments import FLASH_REFUSED
from tinystories_hf.model import gpu_attention, kernels
from tinystories_hf.model.attention_mask import columns, seen_keys, within
from tinystories_hf.model.kernels import AttentionSettings

# Above this head dimension the kernel is no faster than PyTorch, except with attention dropout, for
# which PyTorch has only a slow path on the CPU (docs/benchmarks.md).
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


class GPTNeoAttention(modeling_gpt_neo.GPTNeoSelfAttention):
    """The attention of a block, with the weights and weight names of Transformers' class.

    `implementation` is read at each call. "sdpa": rows without padding on the CPU use this
    package's kernel; padding, a cache, other devices and other head dimensions use
    `scaled_dot_product_attention` with the layer's own mask. "eager": Transformers' computation,
    also for calls that request the attention weights.
    """

    implementation: str
    window: int  # the positions that a query attends to, including its own
    may_use_window: bool = True  # of flash attention, where it has one

    @classmethod
    def take_over(cls, attention: modeling_gpt_neo.GPTNeoSelfAttention, word: str) -> None:
        """Convert a layer built by Transformers to this class; its weights are kept."""
        config = attention.config
        local = attention.attention_type == "local"
        attention.__class__ = cls
        attention.implementation = word
        attention.window = config.window_size if local else config.max_position_embeddings

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        layer_past: Cache | None = None,
        output_attentions: bool | None = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (batch, length, hidden), and the attention weights if eager.

        `attention_mask` has four dimensions. It is either boolean, True where a query may attend to
        a key, with at least one key per query, or added to the scores. An empty one masks nothing.
        """
        if attention_mask is not None and attention_mask.numel() == 0:
            attention_mask = None
        if (
            output_attentions
            and self.implementation == "sdpa"
            and not torch.compiler.is_compiling()
        ):
            modeling_gpt_neo.logger.warning_once(
                "`sdpa` attention does not support `output_attentions=True`. Please set your"
                " attention to `eager` if you want any of these features."
            )
        is_eager = output_attentions or self.implementation == "eager"
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            # The gradients of PyTorch's fast implementations are wrong where the lowest number is
            # added to all scores of a query: they keep the log-sum, which loses the number of keys.
            is_eager |= self.training or torch.is_grad_enabled()
        query, key, value = (
            project(hidden_states) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.attn_dropout.p if self.training else 0.0
        is_plain = layer_past is None and attention_mask is None and not is_eager
        weights = None
        if is_plain and self._has_kernel(query, dropout):
            mixed = self._kernel(query, key, value, dropout)
        else:
            query, key, value = (
                self._split_heads(x, self.num_heads, self.head_dim) for x in (query, key, value)
            )
            offset: int | torch.Tensor = 0
            if layer_past is not None:
                length = query.shape[-2]
                begin = layer_past.get_mask_sizes(length, self.layer_id)[1]
                offset = layer_past.get_query_offset(self.layer_id) - begin
                key, value = layer_past.update(key, value, self.layer_id)
                attention_mask = columns(attention_mask, begin, key.shape[-2])
            if is_eager:
                heads, weights = self._eager(query, key, value, attention_mask, offset)
            else:
                heads = self._sdpa(query, key, value, attention_mask, offset, dropout)
            mixed = self._merge_heads(heads, self.num_heads, self.head_dim)
        return self.resid_dropout(self.out_proj(mixed)), weights

    def _has_kernel(self, query: torch.Tensor, dropout: float) -> bool:
        return (
            self.head_dim in kernels.HEAD_DIMS
            and (self.head_dim <= WIDEST_FAST_HEAD or dropout > 0)
            and kernels.can_read(query)
        )

    def _kernel(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        """Attend in fp32, with dropout from torch's default generator."""
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
        mask: torch.Tensor | None = None,
        offset: int | torch.Tensor = 0,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """Attend in PyTorch; all tensors but the mask are (batch, heads, length, head_dim)."""
        length = query.shape[-2]
        is_causal = False
        if self._has_flash_window(query, key, mask):
            return gpu_attention.attend_in_window(query, key, value, self.window, dropout)
        if isinstance(
            offset, torch.Tensor
        ):  # of a static cache, on whose values the code may not branch
            mask = within(mask, self._seen(query, key, offset), query.dtype)
        else:
            # No query attends to keys before the window of the first one.
            first = max(0, offset + 1 - self.window)
            kept = slice(first, offset + length)
            key, value, offset = key[:, :, kept], value[:, :, kept], offset - first
            mask = columns(mask, first, offset + length)
            if length == 1:
                mask = within(mask, None, query.dtype)
            elif mask is None and offset == 0 and length <= self.window:
                is_causal = True
            else:
                mask = within(mask, self._seen(query, key, offset), query.dtype)
        return gpu_attention.attend(query, key, value, mask, dropout, is_causal=is_causal)

    def _has_flash_window(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None
    ) -> bool:
        return (
            self.may_use_window
            and gpu_attention.on_gpu(query)
            and query.dtype in gpu_attention.HALF
            and mask is None
            and query.shape[-2] == key.shape[-2] > self.window
            and gpu_attention.has_flash_window()
        )

    def _seen(
        self, query: torch.Tensor, key: torch.Tensor, offset: int | torch.Tensor
    ) -> torch.Tensor:
        return seen_keys(query.shape[-2], key.shape[-2], self.window, offset, query.device)

    def _eager(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        offset: int | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend as Transformers does, with scores in fp32; return the weights too."""
        scores = query.float() @ key.float().transpose(-1, -2)
        lowest = torch.finfo(scores.dtype).min
        scores = torch.where(self._seen(query, key, offset), scores, lowest)
        if mask is not None:
            scores = scores + (torch.where(mask, 0.0, lowest) if mask.dtype == torch.bool else mask)
        weights = self.attn_dropout(scores.softmax(-1).to(value.dtype))
        return weights @ value, weights


class _NotAsked(str):
    """The value "eager" in a configuration for which nobody chose it.

    Transformers' classes refuse a configuration with "sdpa". This package's classes treat this
    value as unset.
    """

    __slots__ = ()


def take_word(config: GPTNeoConfig, asked: str | None = None) -> str:
    """Return the requested attention, and set a value in the configuration that Transformers knows.

    If `asked` is None, the configuration decides.

    Raises:
        ValueError: it is neither "sdpa" nor "eager".
    """
    asked = asked or config._attn_implementation
    word = "sdpa" if asked is None or isinstance(asked, _NotAsked) else asked
    if "flash" in word:
        raise ValueError(f"{FLASH_REFUSED}; use sdpa or eager")
    if word not in ("sdpa", "eager"):
        raise ValueError(f'attn_implementation="{word}" is not supported; use sdpa or eager')
    config._attn_implementation = word if word == "eager" else _NotAsked("eager")
    return word


class ChosenAttention(modeling_gpt_neo.GPTNeoPreTrainedModel):
    """A model whose attention is "sdpa" (the default) or "eager", with the same results."""

    _supports_flash_attn = False

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], **_: Any) -> None:
        """Select "sdpa" or "eager" for the following calls."""
        asked: Any = attn_implementation
        word = take_word(self.config, asked.get("") if isinstance(asked, dict) else asked)
        for module in self.modules():
            if isinstance(module, GPTNeoAttention):
                module.implementation = word
