"""How sure a mean is: intervals by bootstrap over what was drawn independently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]
RESAMPLES = 1000
SEED = 0
# Draws that are summed up together: 8 MB of indices.
DRAWS_AT_ONCE = 1 << 20


def ratio_interval(sums: ArrayLike, counts: ArrayLike, block: int = 1) -> Interval | None:
    """Return the 95% interval of sum(sums) / sum(counts), both (units,).

    Units (stories, prompts, groups of items) are drawn anew 1,000 times with a fixed seed and the
    percentiles taken (Efron and Tibshirani, 1993, chapter 13). Where neighbours depend on each
    other, so many of them are drawn together, as a block that may begin anywhere and goes around
    the end (Politis and Romano, 1992). A single unit says nothing of how others would vary: None,
    as where nothing was counted.
    """
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if len(sums) < 2:
        return None
    draws = -(-len(sums) // block)
    if block > 1:
        sums, counts = _block_sums(sums, block), _block_sums(counts, block)
    generator = np.random.default_rng(SEED)
    at_once = max(1, DRAWS_AT_ONCE // draws)
    ratios: list[float] = []
    for start in range(0, RESAMPLES, at_once):
        shape = (min(at_once, RESAMPLES - start), draws)
        drawn = generator.integers(len(sums), size=shape)
        totals = counts[drawn].sum(axis=1)
        ratios += (sums[drawn].sum(axis=1)[totals > 0] / totals[totals > 0]).tolist()
    if not ratios:
        return None
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _block_sums(values: np.ndarray[Any, Any], block: int) -> np.ndarray[Any, Any]:
    """Return the sum of each unit and those that follow it, around the end, (units,)."""
    around = np.concatenate([values, values[: block - 1]])
    ends = np.concatenate([[0.0], around.cumsum()])
    sums: np.ndarray[Any, Any] = ends[block:] - ends[:-block]
    return sums


def block_length(stories: int, tokens: int, context_length: int) -> int:
    """Return how many neighbouring stories of a packed stream are drawn together.

    Stories in one window share its context: what one gains by a late place the next loses. A block
    spans four windows at least, and more for many stories; it leaves ten blocks at least.
    """
    windows = 4 * context_length * stories / tokens
    return max(1, min(math.ceil(max(windows, math.pow(stories, 1 / 3))), stories // 10))


def require_some(values: Sequence[Any]) -> None:
    """Raise a `ValueError` where a mean would be that of nothing."""
    if not len(values):
        raise ValueError("there is nothing to measure: give at least one text or value")


def clustered_mean(values: Sequence[float], clusters: Sequence[Any]) -> dict[str, Any]:
    """Return the mean of values and its interval, those of one cluster being drawn together.

    Raises:
        ValueError: there are no values.
    """
    require_some(values)
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    numbers = np.array([names[name] for name in clusters])
    sums = np.bincount(numbers, weights=values, minlength=len(names))
    counts = np.bincount(numbers, minlength=len(names))
    return {
        "mean": float(np.mean(values)),
        "interval": ratio_interval(sums, counts),
        "count": len(values),
    }
