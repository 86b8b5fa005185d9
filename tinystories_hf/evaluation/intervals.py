"""Bootstrap confidence intervals over independent units (stories, prompts, groups of items)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]
RESAMPLES = 1000
SEED = 0
# Draws that are evaluated together: 8 MB of indices.
DRAWS_AT_ONCE = 1 << 20


def ratio_interval(sums: ArrayLike, counts: ArrayLike, block: int = 1) -> Interval | None:
    """Return the 95% percentile interval of sum(sums) / sum(counts), or None.

    Units (stories, prompts, groups of items) are resampled 1,000 times with a fixed seed (Efron and
    Tibshirani, 1993, chapter 13). If neighbouring units are dependent, blocks of `block` of them
    are resampled instead; a block may start anywhere and wraps around the end (circular block
    bootstrap, Politis and Romano, 1992).

    Args:
        sums: the numerator of each unit, (units,).
        counts: the denominator of each unit, (units,).
        block: the number of neighbouring units that are resampled together.

    Returns:
        The ends of the interval; None if there are fewer than two units or all counts are zero.
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
    """Return the sum of the block that starts at each unit and wraps around the end, (units,)."""
    around = np.concatenate([values, values[: block - 1]])
    ends = np.concatenate([[0.0], around.cumsum()])
    sums: np.ndarray[Any, Any] = ends[block:] - ends[:-block]
    return sums


def block_length(stories: int, tokens: int, context_length: int) -> int:
    """Return how many neighbouring stories of a packed stream are resampled together.

    Stories in the same window are not independent: a story that is late in its window has a lower
    loss, and the next one a higher. A block covers at least four windows, or the cube root of the
    number of stories if that is more, and there are at least ten blocks.
    """
    windows = 4 * context_length * stories / tokens
    return max(1, min(math.ceil(max(windows, math.pow(stories, 1 / 3))), stories // 10))


def require_some(values: Sequence[Any]) -> None:
    """Raise a `ValueError` if there are no values."""
    if not len(values):
        raise ValueError("there is nothing to evaluate: give at least one text or value")


def clustered_mean(values: Sequence[float], clusters: Sequence[Any]) -> dict[str, Any]:
    """Return the mean of values, its interval, and their number; clusters are resampled as a whole.

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
