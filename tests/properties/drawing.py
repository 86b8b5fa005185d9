"""Shared by all property tests: the number of cases, the settings and the time limit."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

FACTOR = int(os.environ.get("PROPERTIES", "1"))
# The slowest case takes under 2 s, so that one that takes this long hangs.
SECONDS_PER_CASE = 30


def holds_for(
    cases: int, **drawn: SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Turn a check into a test of so many random cases, and assert that all of them ran.

    The check receives an empty folder and the drawn values.
    """

    def test_of(check: Callable[..., None]) -> Callable[[], None]:
        def test() -> None:
            held = 0

            def one(**values: Any) -> None:
                nonlocal held
                with tempfile.TemporaryDirectory() as folder, in_time():
                    check(Path(folder), **values)
                held += 1

            one.__qualname__ = check.__qualname__  # the seed of the fixed cases
            settings(
                max_examples=cases * FACTOR,
                derandomize=FACTOR == 1,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )(given(**drawn)(one))()
            assert held >= cases, f"only {held} of {cases} cases were tried"

        test.__doc__ = check.__doc__
        test.cases = cases  # type: ignore[attr-defined]
        return test

    return test_of


@contextmanager
def in_time() -> Iterator[None]:
    """Interrupt a case that hangs, so that the case itself is reported."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS_PER_CASE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS_PER_CASE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
