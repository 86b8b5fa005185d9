"""Splits of a corpus: their definition, holding out a share of stories, and progress bars."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from tinystories_hf.core.errors import UserError

# GPT-2's and GPT-Neo's special token, which also divides the stories of TinyStories' text files.
END_OF_TEXT = "<|endoftext|>"
# None is a record whose text is null; cleaning counts and drops it. See `drop_null`.
OptionalStory = str | None
ReportProgress = Callable[[int], object]


def ignore_progress(_: int) -> None:
    """Do nothing: the default `ReportProgress`."""


@dataclass(frozen=True)
class Split:
    """One split of a corpus.

    Attributes:
        identity: everything that determines the stories, such as a commit or the sha256 of a file.
        stories: returns an iterator from the first story on, and reports the `unit`s read so far.
        total: the number of `unit`s of the split, None if unknown.
        text_bytes: bytes of plain text, as far as they are known before reading.
    """

    identity: dict[str, Any]
    stories: Callable[[ReportProgress], Iterator[OptionalStory]]
    total: int | None = None
    unit: Literal["stories", "bytes"] = "stories"
    text_bytes: int = 0

    def read(self, advance: ReportProgress = ignore_progress) -> Iterator[OptionalStory]:
        """Return all stories from the first; `advance` is called with the number of units read."""
        return self.stories(advance)


@dataclass(frozen=True)
class Corpus:
    """The training split and the validation split."""

    train: Split
    validation: Split


def hold_out(split: Split, share: float, seed: int) -> Corpus:
    """Divide one split into training and validation by a keyed hash of each story's text.

    The choice does not depend on the order of stories, and equal stories are always in the same
    split, so that no copy of a validation story is trained on. If at least two stories differ, each
    split has at least one: the smallest hash is held out, the largest is kept for training.
    """
    key = seed.to_bytes(16, "little", signed=True)

    def hash_of(story: str) -> int:
        digest = hashlib.blake2b(story.encode(), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "little")

    @functools.cache
    def bound() -> int:
        """Return the hash below which a story is held out; reads until both splits have one."""
        limit = int(share * 2**64)
        least, most = 2**64, -1
        for story in split.read():
            if story is not None and story.strip():  # a blank story cannot be the validation split
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


def share_of(split: Split, share: float) -> Split:
    """Return a share of the stories of a split, evenly spaced; 1 is the split itself."""
    if share == 1:
        return split

    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
        for number, story in enumerate(split.read(advance)):
            if int((number + 1) * share) > int(number * share):
                yield story

    identity = {**split.identity, "share": share}
    return replace(split, identity=identity, stories=stories)


def stories_with_progress(split: Split, what: str, quiet: bool) -> Iterator[OptionalStory]:
    """Yield the stories with a progress bar, which is shown only on a terminal."""
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
    """Return the error for a split without stories, with the likely cause."""
    why = "; check that it is the right dataset"
    if split.total == 0:
        why = ": it is empty"
    elif "held_out_share" in split.identity:
        why = (
            ": holding out a validation split (validation_share) needs two different stories; add"
            " stories, set story_separator to what divides the stories of a text file, or set"
            " validation_file"
        )
    return UserError(f"dataset: {dataset} has no {name} stories{why}")
