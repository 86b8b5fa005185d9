"""Checks of the range of settings."""

from __future__ import annotations

from tinystories_hf.core.errors import UserError


def positive(owner: object, *names: str) -> None:
    """Raise a `UserError` if a setting of `owner` is neither None nor above 0."""
    for name in names:
        value = getattr(owner, name)
        if value is not None and value <= 0:
            raise UserError(f"{name} must be positive, got {value}")


def not_negative(owner: object, *names: str) -> None:
    """Raise a `UserError` if a setting of `owner` is below 0."""
    for name in names:
        if getattr(owner, name) < 0:
            raise UserError(f"{name} must not be negative, got {getattr(owner, name)}")


def in_unit_interval(owner: object, *names: str) -> None:
    """Raise a `UserError` if a setting of `owner` is not in [0, 1)."""
    for name in names:
        if not 0 <= getattr(owner, name) < 1:
            raise UserError(f"{name} must be in [0, 1), got {getattr(owner, name)}")
