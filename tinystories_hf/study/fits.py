"""Fits of a scaling study: power laws with their uncertainty, optima, and the lower hull."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinystories_hf.core.errors import UserError

Logs = np.ndarray[Any, np.dtype[np.float64]]
_RESAMPLES = 1000
FEWEST_POINTS = 3


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x ** exponent; `interval` is the 95% bootstrap interval of the exponent.

    The interval is None for two points, through which every law goes exactly.
    """

    coefficient: float
    exponent: float
    interval: tuple[float, float] | None
    points: int

    def __call__(self, x: float) -> float:
        """Return y."""
        return float(self.coefficient * x**self.exponent)


def fit_power_law(x: Sequence[float], y: Sequence[float], seed: int = 0) -> PowerLaw:
    """Fit a power law by least squares of the logarithms; the bootstrap resamples the points.

    Raises:
        UserError: there are fewer than two different x, or a value is not positive.
    """
    if len(set(x)) < 2:
        raise UserError(
            f"a power law needs points at two or more different values, found {len(set(x))}"
        )
    if min(*x, *y) <= 0:
        raise UserError("a power law needs positive values")
    log_x, log_y = np.log(x), np.log(y)
    slope, intercept = np.polyfit(log_x, log_y, 1)
    interval = None
    if len(set(x)) >= FEWEST_POINTS:
        interval = _interval(log_x, log_y, seed)
    return PowerLaw(math.exp(intercept), float(slope), interval, len(x))


def _interval(log_x: Logs, log_y: Logs, seed: int) -> tuple[float, float]:
    chosen = np.random.default_rng(seed).integers(len(log_x), size=(_RESAMPLES, len(log_x)))
    x, y = log_x[chosen], log_y[chosen]
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    spread = (x**2).sum(1)
    several = spread > 0  # a resample may consist of one point
    low, high = np.quantile((x * y).sum(1)[several] / spread[several], [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Optimum:
    """The lowest loss over some values of a setting.

    `at_edge`: the best value measured is the smallest or the largest, so that the optimum may lie
    outside. `fitted`: the minimum of a parabola; otherwise it is the best value measured.
    """

    value: float
    loss: float
    at_edge: bool
    fitted: bool


def find_optimum(values: Sequence[float], losses: Sequence[float]) -> Optimum:
    """Return the optimum of losses over the logarithm of some values.

    A parabola goes through the best point and its two neighbours. It is not used if the best point
    has only one neighbour, or if it opens downward.

    Raises:
        UserError: there are no values, or values repeat.
    """
    if not values or len(set(values)) < len(values):
        raise UserError("an optimum needs one loss for each of several different values")
    points = sorted(zip(values, losses, strict=True))
    best = min(range(len(points)), key=lambda i: points[i][1])
    value, loss = points[best]
    at_edge = best in (0, len(points) - 1)
    if at_edge:
        return Optimum(value, loss, at_edge=True, fitted=False)
    around = points[best - 1 : best + 2]
    curvature, slope, constant = np.polyfit(
        np.log([v for v, _ in around]), [y for _, y in around], 2
    )
    if curvature <= 0:
        return Optimum(value, loss, at_edge=False, fitted=False)
    lowest = -slope / (2 * curvature)
    found = float(constant + slope * lowest / 2)
    return Optimum(math.exp(lowest), found, at_edge=False, fitted=True)


def lower_hull(x: Sequence[float], y: Sequence[float]) -> list[int]:
    """Return the points, by index and increasing x, that have the lowest y for their x or less.

    Each has a lower y than all points with a smaller x: what more compute has to improve on.
    """
    order = sorted(range(len(x)), key=lambda i: (x[i], y[i]))
    found: list[int] = []
    for index in order:
        if not found or y[index] < y[found[-1]]:
            found.append(index)
    return found
