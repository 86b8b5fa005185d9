"""How a model reads a split: its own tokens of every story, in windows that predict each once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from tinystories_hf.config.arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data import cleaning
from tinystories_hf.data.cleaning import CleaningCounts, clean, story_digest
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.manifest import PreparedData
from tinystories_hf.data.prepare import STORIES_FOLDER, STORIES_PER_BATCH
from tinystories_hf.data.splits import Split, no_stories_error
from tinystories_hf.data.tokenize import WordTokenizer, unknown_words_reported

Ids = np.ndarray[Any, np.dtype[np.int64]]

PACKED = "packed"
BY_STORY = "by_story"
PROTOCOLS = {
    PACKED: "as trained: all stories in one stream, an end of text after each, cut into windows of"
    " the context length; fp32, every token counted once",
    BY_STORY: "as read: each story alone after one end of text; one longer than the context goes on"
    " in windows that repeat half of it; fp32, every token counted once",
}


@dataclass(frozen=True)
class Validation:
    """The stories of a validation split, and which of them stand verbatim in training.

    `in_training` (stories,) is None where training is streamed: nobody has looked.
    """

    texts: list[str]
    in_training: np.ndarray[Any, np.dtype[np.bool_]] | None
    source: dict[str, Any]
    cleaning: list[str]


def read_validation(data: DataArguments) -> Validation:
    """Read a validation split as preparation does, and look its stories up in training.

    Training is read through once, its stories are not kept; with `streaming` it is not read. White
    space around a story does not count in the comparison.

    Raises:
        UserError: the corpus cannot be read, or it has no stories for validation.
    """
    corpus = open_corpus(data)
    texts = list(_clean(corpus.validation, replace(data, drop_validation_overlap=False)))
    once = replace(data, drop_validation_overlap=False, drop_duplicates=False)
    found = None if data.streaming else occurs_in(texts, _clean(corpus.train, once))
    if data.drop_validation_overlap and found is not None:
        texts = [text for text, known in zip(texts, found, strict=True) if not known]
        found = np.zeros(len(texts), dtype=bool)
    if not texts:
        raise no_stories_error(data.dataset, "validation", corpus.validation)
    return Validation(texts, found, corpus.validation.identity, cleaning.options(data))


def prepared_validation(prepared: PreparedData) -> Validation:
    """Return what `read_validation` would, from a prepared folder: no corpus is asked again."""
    table = parquet.read_table(prepared.path / STORIES_FOLDER)
    manifest = prepared.manifest
    known = table["in_training"]
    return Validation(
        table["text"].to_pylist(),
        None if known.null_count else np.array(known.to_pylist(), dtype=bool),
        manifest.validation.source,
        manifest.cleaning,
    )


def _clean(split: Split, data: DataArguments) -> Iterable[str]:
    return clean(split.read(), data, CleaningCounts())


def occurs_in(stories: Sequence[str], others: Iterable[str]) -> np.ndarray[Any, Any]:
    """Tell for each story whether it is one of the others, (stories,)."""
    wanted: dict[bytes, list[int]] = {}
    for number, story in enumerate(stories):
        wanted.setdefault(story_digest(story), []).append(number)
    found = np.zeros(len(stories), dtype=bool)
    for other in others:
        same = wanted.get(story_digest(other))
        if same is not None:
            found[same] = True
    return found


@dataclass(frozen=True)
class TokenizedStories:
    """Stories as a model's own tokenizer cuts them, one after the other.

    `ids` (tokens,) holds an `end` after each story; `starts` (stories,) is where each begins,
    `bytes` (stories,) its length in UTF-8; `begin` is what a model reads before the first token.
    """

    ids: Ids
    starts: Ids
    bytes: Ids
    begin: int
    end: int

    @property
    def lengths(self) -> Ids:
        """Return the tokens of each story, its end counted, (stories,)."""
        return np.diff(self.starts, append=len(self.ids))


def tokenize_stories(
    tokenizer: PreTrainedTokenizerFast, stories: Sequence[str]
) -> TokenizedStories:
    """Tokenize stories, each followed by the tokenizer's EOS.

    Raises:
        UserError: the tokenizer knows no end of text.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("the model's tokenizer has no eos_token; no story could end")
    begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    tokenize = WordTokenizer(tokenizer)
    parts: list[Ids] = []
    for start in range(0, len(stories), STORIES_PER_BATCH):
        batch = list(stories[start : start + STORIES_PER_BATCH])
        ids = tokenize(batch)
        if np.count_nonzero(ids == end) == len(batch):
            parts += np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]
        else:  # a story spells the mark out
            parts += [tokenize([story]) for story in batch]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return TokenizedStories(
        ids=np.concatenate(parts).astype(np.int64),
        starts=np.cumsum(lengths) - lengths,
        bytes=np.array([len(story.encode()) for story in stories], dtype=np.int64),
        begin=begin,
        end=end,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the tokens of a text without marks, however long it is."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may bring it along
    with unknown_words_reported():
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


@dataclass(frozen=True)
class Reading:
    """All predictions of a text: `targets[i]` follows `inputs[i]`, both (tokens,).

    Each row of `windows` (windows, 3) is begin, end and the first that counts: a model reads
    `inputs[begin:end]` at once, and what it predicts from the third on is counted there.
    """

    inputs: Ids
    targets: Ids
    windows: Ids


def reading_protocol(stories: TokenizedStories, protocol: str, context_length: int) -> Reading:
    """Lay out the windows of a protocol, see `PROTOCOLS`; every token counts in exactly one."""
    inputs = np.concatenate([[stories.begin], stories.ids[:-1]])
    if protocol == PACKED:
        begins = np.arange(0, len(inputs), context_length)
        ends = np.minimum(begins + context_length, len(inputs))
        return Reading(inputs, stories.ids, np.stack([begins, ends, begins], axis=1))
    inputs[stories.starts] = stories.begin
    windows: list[tuple[int, int, int]] = []
    for first, length in zip(stories.starts.tolist(), stories.lengths.tolist(), strict=True):
        last, counted = first + length, first
        while counted < last:
            step = context_length if counted == first else max(1, context_length // 2)
            end = min(counted + step, last)
            windows.append((max(first, end - context_length), end, counted))
            counted = end
    return Reading(inputs, stories.ids, np.array(windows, dtype=np.int64))
