"""How sure a mean is: intervals by bootstrap over what was drawn independently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]
RESAMPLES = 1000
SEED = 0


def ratio_interval(sums: ArrayLike, counts: ArrayLike) -> Interval | None:
    """Return the 95% interval of sum(sums) / sum(counts), both (units,).

    Units (stories, prompts, groups of items) are drawn anew 1,000 times with a fixed seed and the
    percentiles taken (Efron and Tibshirani, 1993, chapter 13). A single unit says nothing of how
    others would vary: None.
    """
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if len(sums) < 2:
        return None
    generator = np.random.default_rng(SEED)
    ratios = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        drawn = generator.integers(len(sums), size=len(sums))
        ratios[resample] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def clustered_mean(values: Sequence[float], clusters: Sequence[Any]) -> dict[str, Any]:
    """Return the mean of values and its interval, those of one cluster being drawn together."""
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    numbers = np.array([names[name] for name in clusters])
    sums = np.bincount(numbers, weights=values, minlength=len(names))
    counts = np.bincount(numbers, minlength=len(names))
    return {
        "mean": float(np.mean(values)),
        "interval": ratio_interval(sums, counts),
        "count": len(values),
    }
