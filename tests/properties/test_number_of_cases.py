from __future__ import annotations

from tests.properties import test_configuration, test_preparation, test_readers


def test_at_least_two_thousand_cases_are_tried() -> None:
    """Each property counts the cases that ran, and fails if they are fewer than stated."""
    modules = (test_configuration, test_readers, test_preparation)
    stated = [getattr(test, "cases", 0) for module in modules for test in vars(module).values()]
    assert sum(stated) >= 2000
