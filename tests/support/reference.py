"""Attention in plain words, the slow way, in fp64: what the fast paths are held against."""

from __future__ import annotations

import torch


def slow_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    window: int,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return unscaled causal attention over a window; `kept` multiplies the weights.

    Tensors are (batch, length, hidden), `kept` is (batch, heads, length, length).
    """
    batch, length, hidden = query.shape
    query, key, value = (
        x.double().view(batch, length, heads, hidden // heads).transpose(1, 2)
        for x in (query, key, value)
    )
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < window)
    weights = (query @ key.mT).masked_fill(~seen, -torch.inf).softmax(-1)
    if kept is not None:
        weights = weights * kept
    return (weights @ value).transpose(1, 2).reshape(batch, length, hidden)
