"""The progress bars of a test, which are otherwise drawn on a terminal alone."""

from __future__ import annotations

import io
from typing import Any

from tqdm import tqdm


class Bars:
    """Take the place of tqdm and remember the bars."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __call__(self, **options: Any) -> Any:
        self.made.append(tqdm(**{**options, "disable": False, "file": io.StringIO()}))
        return self.made[-1]

    def have_ended(self, count: int) -> bool:
        """Return whether there were so many bars, and each ended at its end."""
        assert [bar.n for bar in self.made] == [bar.total for bar in self.made]
        return len(self.made) == count
