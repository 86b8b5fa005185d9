from __future__ import annotations

from collections.abc import Callable

import pytest

from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.training.batch import BatchPlan, plan_batch


@pytest.mark.parametrize(
    ("total", "processes", "per_device", "plan"),
    [
        (80, 1, "null", BatchPlan(80, 1, 80, 1)),
        (1280, 1, "null", BatchPlan(1280, 1, 128, 10)),
        (80, 8, "null", BatchPlan(80, 8, 10, 1)),
        (80, 1, "16", BatchPlan(80, 1, 16, 5)),
        (1280, 4, "20", BatchPlan(1280, 4, 20, 16)),
        (7, 1, "null", BatchPlan(7, 1, 7, 1)),
    ],
)
def test_per_device_batch_and_accumulation_are_derived_from_the_global_batch(
    tiny_arguments: Callable[..., Arguments],
    total: int,
    processes: int,
    per_device: str,
    plan: BatchPlan,
) -> None:
    flags = ("--global_batch_size", str(total), "--per_device_train_batch_size", per_device)
    derived = plan_batch(tiny_arguments(*flags).training, processes)
    assert derived == plan
    product = derived.per_device_train_batch_size * derived.gradient_accumulation_steps
    assert product * processes == total


@pytest.mark.parametrize(
    ("total", "processes", "per_device", "message"),
    [
        ("80", 3, "null", "not divisible by 3 processes; use 78 or 81, or start 2 processes"),
        ("80", 6, "null", "use 78 or 84, or start 5 processes"),
        ("2", 4, "null", "not divisible by 4 processes; use 4, or start 2 processes"),
        ("80", 1, "7", "per_device_train_batch_size 7; use one of 1, 2, 4, 5"),
    ],
)
def test_an_indivisible_batch_names_values_that_fit(
    tiny_arguments: Callable[..., Arguments],
    total: str,
    processes: int,
    per_device: str,
    message: str,
) -> None:
    flags = ("--global_batch_size", total, "--per_device_train_batch_size", per_device)
    with pytest.raises(UserError, match=message):
        plan_batch(tiny_arguments(*flags).training, processes)
