"""Switching off the progress bars of other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of Transformers and of huggingface_hub."""
    hub_shows, transformers_shows = not are_progress_bars_disabled(), is_progress_bar_enabled()
    disable_progress_bar()  # of both
    try:
        yield
    finally:
        if transformers_shows:
            enable_progress_bar()
        (enable_progress_bars if hub_shows else disable_progress_bars)()
