from __future__ import annotations

import numpy as np
import pytest

from tinystories_hf.core.errors import UserError
from tinystories_hf.study.fits import find_optimum, fit_power_law, lower_hull


@pytest.mark.parametrize("exponent", [-0.5, -0.07, 0.3])
def test_the_exponent_of_a_known_law_lies_in_its_interval(exponent: float) -> None:
    inside = 0
    for seed in range(40):
        noise = np.random.default_rng(seed)
        x = np.logspace(0, 3, 12)
        y = 3 * x**exponent * np.exp(0.02 * noise.standard_normal(12))
        law = fit_power_law(x.tolist(), y.tolist())
        assert law.interval is not None
        assert law.exponent == pytest.approx(exponent, abs=0.02)
        assert law.coefficient == pytest.approx(3, rel=0.1)
        inside += law.interval[0] <= exponent <= law.interval[1]
        assert law == fit_power_law(x.tolist(), y.tolist())
    assert inside >= 32  # a bootstrap of 12 points covers a little less than 95%


def test_without_noise_the_law_is_exact() -> None:
    law = fit_power_law([1, 10, 100], [5, 0.5, 0.05])
    assert law.exponent == pytest.approx(-1)
    assert law(1000) == pytest.approx(0.005)
    two = fit_power_law([1, 10], [5, 0.5])
    assert two.exponent == pytest.approx(-1)
    assert two.interval is None


def test_what_is_no_law_is_refused() -> None:
    with pytest.raises(UserError, match="two or more different values, found 1"):
        fit_power_law([3, 3], [1, 2])
    with pytest.raises(UserError, match="found 0"):
        fit_power_law([], [])
    with pytest.raises(UserError, match="positive"):
        fit_power_law([1, 2], [1, 0])


def test_the_optimum_is_that_of_a_parabola_through_the_best_three() -> None:
    values = [1e-4, 1e-3, 1e-2, 1e-1]
    losses = [2 + (np.log(value) - np.log(2e-3)) ** 2 for value in values]
    found = find_optimum(values, losses)
    assert found.fitted
    assert not found.at_edge
    assert found.value == pytest.approx(2e-3)
    assert found.loss == pytest.approx(2)
    order = [2, 0, 3, 1]
    shuffled = find_optimum([values[i] for i in order], [losses[i] for i in order])
    assert shuffled == found


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
def test_an_optimum_at_the_edge_is_marked_and_not_fitted(losses: list[float]) -> None:
    found = find_optimum([1.0, 2.0, 4.0], losses)
    assert found.at_edge
    assert not found.fitted
    assert found.loss == 1.0
    only = find_optimum([1.0], [5.0])
    assert only.at_edge


def test_a_flat_neighbourhood_gives_the_best_value_measured() -> None:
    found = find_optimum([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert not found.fitted
    with pytest.raises(UserError, match="several different values"):
        find_optimum([1.0, 1.0], [1.0, 2.0])


def test_the_lower_hull_is_what_no_smaller_point_beats() -> None:
    assert lower_hull([1, 2, 3, 4, 2], [5, 4, 4.5, 1, 3.9]) == [0, 4, 3]
    assert lower_hull([], []) == []
