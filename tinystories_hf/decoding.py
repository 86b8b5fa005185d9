"""Token after token: many stories at once, each with its own random numbers.

What is told does not depend on the batch: a story draws from a stream of its own, keeps its own
length, and stops at its own end. Stories that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, TopKLogitsWarper, TopPLogitsWarper

from tinystories_hf.arguments import GenerationArguments
from tinystories_hf.modeling import GPTNeoForCausalLM

# Ended stories are taken out of the batch, by copying its cache, when they are this share of it.
SHARE_TO_LEAVE = 1 / 8


def uniform_draws(seed: int, stories: Sequence[int], steps: int) -> torch.Tensor:
    """Return numbers in [0, 1) for each step of each story, (stories, steps), fp64."""
    draws = [np.random.default_rng([seed, story]).random(steps) for story in stories]
    return torch.from_numpy(np.stack(draws))


def choose_tokens(
    logits: torch.Tensor, draws: torch.Tensor, settings: GenerationArguments
) -> torch.Tensor:
    """Return the next token of each story, (stories,), from logits (stories, vocabulary).

    Where the draw falls in the cumulated probabilities: one number for each story instead of one
    for each of the 50,257 tokens, which takes a third of the time of `generate` (measured). They
    are cumulated in fp64, since fp32 would lose all tokens less likely than 3e-8.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / settings.temperature
    if settings.top_k:
        logits = TopKLogitsWarper(settings.top_k)(None, logits)
    if settings.top_p < 1:
        logits = TopPLogitsWarper(settings.top_p)(None, logits)
    cumulated = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    wanted = draws[:, None].to(logits.device) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, wanted, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


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
            attention_mask=_mask(padding[rows], width + step, device),
            position_ids=positions.to(device),
            past_key_values=cache,
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
