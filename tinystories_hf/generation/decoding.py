"""Batched sampling in which each story has its own random numbers.

The text of a story does not depend on the rest of the batch: it has its own random stream, its own
length and its own end. Finished stories are removed from the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, TopKLogitsWarper, TopPLogitsWarper

from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.model.modeling import GPTNeoForCausalLM

# Finished stories are removed, by copying the cache, when they are this share of the batch.
SHARE_TO_LEAVE = 1 / 8
# The block size of the cumulative sums in which a draw is looked up.
_BLOCK = 256


def uniform_draws(seed: int, stories: Sequence[int], steps: int) -> torch.Tensor:
    """Return uniform random numbers in [0, 1) per story and step, (stories, steps), fp64."""
    draws = [np.random.default_rng([seed, story]).random(steps) for story in stories]
    return torch.from_numpy(np.stack(draws))


def choose_tokens(
    logits: torch.Tensor, draws: torch.Tensor, settings: GenerationArguments
) -> torch.Tensor:
    """Return the next token of each story, (stories,), from logits (stories, vocabulary).

    It is found by inverting the cumulative distribution: one random number per story, where
    `generate` of Transformers draws one per token of the vocabulary.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    if settings.temperature != 1:
        logits = logits / settings.temperature
    if settings.top_k:
        logits = TopKLogitsWarper(settings.top_k)(None, logits)
    if settings.top_p < 1:
        logits = TopPLogitsWarper(settings.top_p)(None, logits)
    return _where(logits.softmax(-1), draws[:, None].to(logits.device))[:, 0]


def _where(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return the token of each draw, (stories, 1); probabilities need not sum to 1.

    First the block of 256 tokens is found, then the token, with cumulative sums in fp64: fp32 would
    lose tokens below 3e-8, and a sum over the whole vocabulary takes as long as its logits.
    """
    vocabulary = probabilities.shape[-1]
    whole = vocabulary // _BLOCK * _BLOCK
    blocks = probabilities[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1)
    last = probabilities[:, whole:].sum(-1, keepdim=True)
    ends = torch.cat([blocks, last], -1).cumsum(-1, dtype=torch.float64)
    wanted = draws * ends[:, -1:]
    block = torch.searchsorted(ends, wanted, right=True).clamp(max=ends.shape[-1] - 1)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    inside = probabilities.gather(-1, tokens.clamp(max=vocabulary - 1)).double()
    inside[tokens >= vocabulary] = 0
    found = torch.searchsorted(inside.cumsum(-1), wanted - before, right=True)
    # Rounding may put the draw just past its block: take the last token with a probability.
    likely = torch.where(inside > 0, torch.arange(_BLOCK, device=block.device), 0).amax(-1, True)
    return block * _BLOCK + torch.minimum(found, likely)


def decode(
    model: GPTNeoForCausalLM,
    prompts: Sequence[Sequence[int]],
    draws: torch.Tensor,
    settings: GenerationArguments,
    context: int,
) -> list[list[int]]:
    """Return the completion ids of each prompt, including the EOS if the story ended with one.

    A story has at most `context` tokens with its prompt, and at most `settings.max_new_tokens`
    without; `draws` is (prompts, steps) with the steps of the longest completion.
    """
    eos, device = model.config.eos_token_id, model.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    limits = (context - lengths).clamp(max=settings.max_new_tokens or context)
    told = torch.full((len(prompts), int(limits.max())), eos)
    width = int(lengths.max())
    rows = torch.arange(len(prompts))  # the story of each row of the batch
    padding = width - lengths
    ids = torch.full((len(prompts), width), eos)
    for row, prompt in enumerate(prompts):
        ids[row, padding[row] :] = torch.tensor(prompt)
    cache = DynamicCache(config=model.config)
    positions = (torch.arange(width) - padding[:, None]).clamp(min=0)
    going = torch.ones(len(prompts), dtype=torch.bool)
    for step in range(told.shape[1]):
        logits = model(
            ids.to(device),
            cache,
            attention_mask=_mask(padding[rows], width + step, device),
            position_ids=positions.to(device),
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        chosen = choose_tokens(logits, draws[rows, step], settings).cpu()
        told[rows[going], step] = chosen[going]
        full = step + 1 >= limits[rows]
        going &= (chosen != eos) & ~full
        if not going.any():
            break
        if full.any() or (~going).float().mean() >= SHARE_TO_LEAVE:
            rows, chosen = rows[going], chosen[going]
            # Without the longest prompts some columns may be padding in every row.
            unused = int(padding[rows].min())
            _keep(cache, going.to(device), unused)
            padding, width = padding - unused, width - unused
            going = going[going]
        ids = chosen[:, None]
        positions = (lengths[rows] + step)[:, None]
    return [_until(story[:limit].tolist(), eos) for story, limit in zip(told, limits, strict=True)]


def _mask(padding: torch.Tensor, width: int, device: torch.device) -> torch.Tensor | None:
    """Return the mask of the columns that are not padding, (stories, width), or None if all are."""
    if not padding.any():
        return None
    return (torch.arange(width) >= padding[:, None]).long().to(device)


def _keep(cache: DynamicCache, rows: torch.Tensor, first_column: int) -> None:
    """Keep some stories of the cache, and its columns from one on."""
    for layer in cache.layers:
        layer.keys = layer.keys[rows, :, first_column:]
        layer.values = layer.values[rows, :, first_column:]


def _until(ids: list[int], eos: int) -> list[int]:
    """Return the ids up to and including the first EOS."""
    return ids[: ids.index(eos) + 1] if eos in ids else ids
