"""Bootstrap intervals have the right coverage, and metrics refuse empty inputs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from tinystories_hf.evaluation.intervals import block_length, clustered_mean, ratio_interval
from tinystories_hf.evaluation.suites import metrics

CONTEXT, STORIES, SAMPLES = 256, 250, 120


def packed_stories(generator: np.random.Generator) -> tuple[np.ndarray[Any, Any], ...]:
    """Return the losses and tokens of packed stories; the true mean loss is 2.

    The first tokens of a window have a higher loss, wherever in a story they are.
    """
    lengths = generator.integers(60, 180, size=STORIES)
    places = np.arange(lengths.sum()) % CONTEXT
    harder = 3 * np.exp(-places / 32)
    story = np.repeat(generator.normal(0, 0.1, size=STORIES), lengths)
    losses = 2 + harder - harder.mean() + story + generator.normal(0, 0.5, size=len(places))
    return np.add.reduceat(losses, np.cumsum(lengths) - lengths), lengths


def alike(generator: np.random.Generator) -> tuple[np.ndarray[Any, Any], ...]:
    """Return stories of mean 2 whose neighbours have a correlation of 0.46."""
    noise = generator.normal(0, 0.2, size=STORIES + 1)
    tokens = np.full(STORIES, 100)
    return (2 + noise[1:] + 0.66 * noise[:-1]) * tokens, tokens


@pytest.mark.parametrize("sample", [packed_stories, alike])
def test_block_bootstrap_intervals_contain_the_mean_of_dependent_stories(
    sample: Callable[[np.random.Generator], tuple[np.ndarray[Any, Any], ...]],
) -> None:
    generator = np.random.default_rng(3)
    held = {"blocks": 0, "apart": 0}
    for _ in range(SAMPLES):
        nats, tokens = sample(generator)
        block = block_length(STORIES, int(tokens.sum()), CONTEXT)
        for name, found in (
            ("blocks", ratio_interval(nats, tokens, block)),
            ("apart", ratio_interval(nats, tokens)),
        ):
            assert found is not None
            held[name] += found[0] <= 2 <= found[1]
    assert 0.9 <= held["blocks"] / SAMPLES <= 0.99
    # Intervals for independent stories are too wide or too narrow.
    assert not 0.9 <= held["apart"] / SAMPLES <= 0.99


def test_blocks_cover_four_windows_and_there_are_at_least_ten() -> None:
    assert block_length(1000, 200_000, 512) == 11
    assert block_length(100_000, 20_000_000, 512) == 47
    assert block_length(20, 400, 512) == 2
    assert block_length(3, 90, 16) == 1


def test_resamples_with_zero_counts_are_left_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ratio_interval([1.0, 3.0], [0.0, 2.0])
        assert found is not None
        assert all(map(math.isfinite, found))
        assert ratio_interval([1.0, 2.0], [0.0, 0.0]) is None
        assert ratio_interval([], []) is None


@pytest.mark.parametrize(
    ("metric", "given"),
    [
        (metrics.Distinct, {"predictions": []}),
        (metrics.SelfBleu, {"predictions": []}),
        (metrics.Repetition, {"predictions": []}),
        (metrics.RougeOverlap, {"predictions": [], "references": []}),
        (metrics.ClozeAccuracy, {"predictions": [], "references": []}),
        (metrics.ClozeAccuracy, {"predictions": [[]], "references": [0]}),
        (metrics.ClozeAccuracy, {"predictions": [[0.5, 1.0]], "references": [2]}),
        (metrics.BitsPerByte, {"predictions": [], "references": []}),
        (metrics.BitsPerByte, {"predictions": [1.0], "references": [""]}),
    ],
)
def test_metrics_refuse_empty_inputs(
    metric: type[evaluate.Metric], given: dict[str, list[Any]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"there is nothing to evaluate|is not the index of"):
        metric(cache_dir=str(tmp_path)).compute(**given)


@pytest.mark.parametrize("name", ["Distinct", "SelfBleu", "Repetition"])
@pytest.mark.parametrize("texts", [[""], ["Hi."], ["", ""], ["...", "Hi."]])
def test_metrics_of_empty_or_single_texts_are_between_zero_and_one(
    name: str, texts: list[str], tmp_path: Path
) -> None:
    found = getattr(metrics, name)(cache_dir=str(tmp_path)).compute(predictions=texts)
    assert all(0 <= value <= 1 for value in found.values())


def test_a_mean_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="there is nothing to evaluate"):
        clustered_mean([], [])
