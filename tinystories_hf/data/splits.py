"""What a split is, how one is divided by a hash of each story, and how one is read by progress."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tinystories_hf.core.errors import UserError

# None is a record without text, which cleaning counts and leaves out; see `drop_null`.
OptionalStory = str | None
ReportProgress = Callable[[int], object]


def ignore(_: int) -> None:
    """Take no notice of progress."""


@dataclass(frozen=True)
class Split:
    """One part of a corpus.

    `identity` is all that decides the stories (a commit, or the sha256 of a file). `stories` starts
    from the first story at each call and reports how many `unit`s it has read; they add up to
    `total` where that is known. `text_bytes` of plain text are known to be in it before reading.
    """

    identity: dict[str, Any]
    stories: Callable[[ReportProgress], Iterator[OptionalStory]]
    total: int | None = None
    unit: Literal["stories", "bytes"] = "stories"
    text_bytes: int = 0

    def read(self, advance: ReportProgress = ignore) -> Iterator[OptionalStory]:
        """Return all stories from the first; `advance` is called with the units just read."""
        return self.stories(advance)


@dataclass(frozen=True)
class Corpus:
    """Stories to train on and stories to validate on."""

    train: Split
    validation: Split


def hold_out(split: Split, share: float, seed: int) -> Corpus:
    """Divide one split in two by a keyed hash of each story's text.

    The same stories are held out whatever their order, and equal stories always fall on the same
    side, so that no copy of a validation story is trained on. Where two stories differ, each side
    has at least one: the story of the smallest hash is held out, that of the largest is kept.
    """
    key = seed.to_bytes(16, "little", signed=True)

    def hash_of(story: str) -> int:
        digest = hashlib.blake2b(story.encode(), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "little")

    @functools.cache
    def bound() -> int:
        """Return the hash below which a story is held out; reads until both sides have one."""
        limit = int(share * 2**64)
        least, most = 2**64, -1
        for story in split.read():
            if story is not None and story.strip():  # a blank one is no validation
                found = hash_of(story)
                least, most = min(least, found), max(most, found)
                if least < limit <= most:
                    return limit
        if least >= most:  # no two stories differ
            return limit
        return most if most < limit else least + 1

    def part(name: str, held: bool) -> Split:
        def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
            limit = bound()
            for story in split.read(advance):
                if (story is not None and hash_of(story) < limit) == held:
                    yield story

        identity = {"held_out_share": share, "held_out_seed": seed, "part": name}
        return Split(
            {**split.identity, **identity}, stories, split.total, split.unit, split.text_bytes
        )

    return Corpus(part("train", False), part("validation", True))


def stories_with_progress(split: Split, what: str, quiet: bool) -> Iterator[OptionalStory]:
    """Yield the stories under a progress bar of what has been read, shown on a terminal alone."""
    from tqdm.auto import tqdm

    bar = tqdm(
        total=split.total,
        unit="B" if split.unit == "bytes" else " stories",
        unit_scale=True,
        desc=what,
        disable=True if quiet else None,
    )
    with bar:
        yield from split.read(bar.update)


def no_stories_error(dataset: str, name: str, split: Split) -> UserError:
    """Return the error of a split without stories, which names the likely cause."""
    why = "; is it the right one?"
    if split.total == 0:
        why = ": there is nothing in it"
    elif "held_out_share" in split.identity:
        why = (
            ": to hold some out (validation_share) it takes two that differ; add stories, name what"
            " divides those of a text file with story_separator, or name those for validation with"
            " validation_file"
        )
    return UserError(f"dataset: {dataset} has no stories for {name}{why}")
