"""Attention masks of GPT-Neo: padding, causality, and the local window of a layer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask

CACHE_NAMES = ("cache", "past_key_values")  # since Transformers 5.24, and before
# Makes Transformers return no mask where a causal mask is enough.
SDPA_MASK = SimpleNamespace(_attn_implementation="sdpa")


def block_mask(
    model: PreTrainedModel,
    windows: set[int],
    input_ids: torch.Tensor | None = None,
    attention_mask: Any = None,
    position_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    use_cache: bool | None = None,
    **rest: Any,
) -> Any:
    """Return a mask of four dimensions, which Transformers' model passes to its blocks unchanged.

    The other arguments are those of the model. An empty tensor means that the causal windows of the
    layers (`windows`) are the only mask.
    """
    tokens = inputs_embeds if input_ids is None else input_ids[..., None]
    is_ready = attention_mask is not None and len(attention_mask.shape) == 4
    # Traced code cannot branch on values: Transformers builds a mask without reading any.
    if tokens is None or is_ready or torch._C._are_functorch_transforms_active():
        return attention_mask
    cache = next((rest[name] for name in CACHE_NAMES if rest.get(name) is not None), None)
    if model.config.use_cache if use_cache is None else use_cache:
        position_ids = None  # Transformers detects packed sequences only without a cache
    mask = create_causal_mask(SDPA_MASK, tokens, attention_mask, cache, position_ids)
    if mask is None:
        return torch.empty(1, 1, 0, 0, device=tokens.device)
    leaves_a_key = tokens.shape[1] == 1 or (cache is None and _leaves_a_key(mask, windows))
    return mask if leaves_a_key else as_scores(mask, model.dtype)


def _leaves_a_key(mask: torch.Tensor, windows: set[int]) -> bool:
    """Return whether each query has a key in each layer; mask: (batch, 1, length, length)."""
    if torch.compiler.is_compiling():
        return False
    queries, keys = mask.shape[-2:]
    seen = [seen_keys(queries, keys, window, 0, mask.device) for window in windows]
    return all(bool((mask & each).any(-1).all()) for each in seen)


def seen_keys(
    queries: int, keys: int, window: int, offset: int | torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Return the boolean mask of a layer, (queries, keys).

    The first query is the key at `offset`; keys after the last query are unused places of a cache.
    """
    own = torch.arange(queries, device=device)[:, None] + offset
    columns = torch.arange(keys, device=device)
    return (columns <= own) & (columns > own - window)


def as_scores(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a boolean or additive mask as numbers that are added to the scores.

    A query whose keys are all masked then weighs them equally, as in Transformers. With a boolean
    mask PyTorch's attention would return zeros for it.
    """
    lowest = torch.finfo(dtype).min
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, lowest)
    return mask.clamp(min=lowest).to(dtype)


def within(
    mask: torch.Tensor | None, seen: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor | None:
    """Combine a given mask with the layer's own."""
    if mask is None:
        return seen
    if mask.dtype == torch.bool:
        return mask if seen is None else mask & seen
    scores = as_scores(mask, dtype)
    if seen is None:
        return scores
    # Transformers scores in fp32, whose lowest number is below that of a narrower mask.
    return scores + as_scores(seen, torch.float32).to(dtype)


def columns(mask: torch.Tensor | None, first: int, keys: int) -> torch.Tensor | None:
    """Return the columns of a mask for some keys; the mask may be that of a longer layer."""
    if mask is None or mask.shape[-1] in (1, keys):
        return mask
    return mask[..., first : first + keys]
