"""Token after token: many stories at once, each with its own random numbers.

What is told does not depend on the batch: a story draws from a stream of its own, keeps its own
length, and stops at its own end. Stories that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, TopKLogitsWarper, TopPLogitsWarper

from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.model.modeling import GPTNeoForCausalLM

# Ended stories are taken out of the batch, by copying its cache, when they are this share of it.
SHARE_TO_LEAVE = 1 / 8
# Tokens that are cumulated together when one is drawn.
_BLOCK = 256


def uniform_draws(seed: int, stories: Sequence[int], steps: int) -> torch.Tensor:
    """Return numbers in [0, 1) for each step of each story, (stories, steps), fp64."""
    draws = [np.random.default_rng([seed, story]).random(steps) for story in stories]
    return torch.from_numpy(np.stack(draws))


def choose_tokens(
    logits: torch.Tensor, draws: torch.Tensor, settings: GenerationArguments
) -> torch.Tensor:
    """Return the next token of each story, (stories,), from logits (stories, vocabulary).

    It is where the draw falls in the cumulated probabilities: one random number for each story,
    where `generate` draws one for each token of the vocabulary.
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
    """Return the token at which each draw, (stories, 1), falls; probabilities need not sum to 1.

    First the block of 256 tokens, then the token, cumulated in fp64: fp32 would lose all tokens
    less likely than 3e-8, and cumulating the whole vocabulary takes as long as its logits.
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
    # Rounding may leave the draw just past its block: the last token that can be drawn there.
    likely = torch.where(inside > 0, torch.arange(_BLOCK, device=block.device), 0).amax(-1, True)
    return block * _BLOCK + torch.minimum(found, likely)


def decode(
    model: GPTNeoForCausalLM,
    prompts: Sequence[Sequence[int]],
    draws: torch.Tensor,
    settings: GenerationArguments,
    context: int,
) -> list[list[int]]:
    """Return what each prompt goes on with, an EOS included where the story ended by itself.

    No story with its prompt is longer than `context` tokens, or goes on for more than
    `settings.max_new_tokens`; `draws` is (prompts, steps) with as many steps as the longest takes.
    """
    eos, device = model.config.eos_token_id, model.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    limits = (context - lengths).clamp(max=settings.max_new_tokens or context)
    told = torch.full((len(prompts), int(limits.max())), eos)
    width = int(lengths.max())
    rows = torch.arange(len(prompts))  # the story that each row of the batch tells
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
            # The longest prompts may be gone, and with them columns that pad all the others.
            unused = int(padding[rows].min())
            _keep(cache, going.to(device), unused)
            padding, width = padding - unused, width - unused
            going = going[going]
        ids = chosen[:, None]
        positions = (lengths[rows] + step)[:, None]
    return [_until(story[:limit].tolist(), eos) for story, limit in zip(told, limits, strict=True)]


def _mask(padding: torch.Tensor, width: int, device: torch.device) -> torch.Tensor | None:
    """Return which columns of the cache are no padding, (stories, width); None where all are."""
    if not padding.any():
        return None
    return (torch.arange(width) >= padding[:, None]).long().to(device)


def _keep(cache: DynamicCache, rows: torch.Tensor, first_column: int) -> None:
    """Leave in the cache some stories, and the columns from one on."""
    for layer in cache.layers:
        layer.keys = layer.keys[rows, :, first_column:]
        layer.values = layer.values[rows, :, first_column:]


def _until(ids: list[int], eos: int) -> list[int]:
    """Return the ids up to the first EOS, which is included."""
    return ids[: ids.index(eos) + 1] if eos in ids else ids
