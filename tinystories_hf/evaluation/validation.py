"""The validation split as tokens of a model, in windows that predict each token exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data import cleaning
from tinystories_hf.data.cleaning import CleaningCounts, clean, story_digest
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.manifest import STORIES_FOLDER, PreparedData
from tinystories_hf.data.prepare import STORIES_PER_BATCH
from tinystories_hf.data.splits import Split, no_stories_error
from tinystories_hf.data.tokenization.tokenize import WordTokenizer, unknown_words_reported

Ids = np.ndarray[Any, np.dtype[np.int64]]

PACKED = "packed"
BY_STORY = "by_story"
PROTOCOLS = {
    PACKED: "as in training: all stories concatenated with an end-of-text token after each, and cut"
    " into windows of the context length; fp32, every token predicted once",
    BY_STORY: "each story alone, after one end-of-text token; a story longer than the context"
    " continues in windows that overlap by half; fp32, every token predicted once",
}


@dataclass(frozen=True)
class Validation:
    """The stories of a validation split, and which of them also occur in the training split.

    `in_training` (stories,) is None if training is streamed: then it is unknown.
    """

    texts: list[str]
    in_training: np.ndarray[Any, np.dtype[np.bool_]] | None
    source: dict[str, Any]
    cleaning: list[str]


def read_validation(data: DataArguments) -> Validation:
    """Read a validation split as in preparation, and find its stories in the training split.

    The training split is read once and not kept in memory; with `streaming` it is not read. White
    space around a story is ignored in the comparison.

    Raises:
        UserError: the dataset cannot be read or has no validation stories.
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
    """Return the same as `read_validation` from a prepared folder, without reading the dataset."""
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
    """Return for each story whether it is among the others, (stories,)."""
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
    """Concatenated stories, tokenized with the model's own tokenizer.

    Attributes:
        ids: the tokens, with `end` after each story, (tokens,).
        starts: the position of the first token of each story, (stories,).
        bytes: the number of UTF-8 bytes of each story, (stories,).
        begin: the input token from which the first token of a text is predicted.
        end: the token after each story.
    """

    ids: Ids
    starts: Ids
    bytes: Ids
    begin: int
    end: int

    @property
    def lengths(self) -> Ids:
        """Return the number of tokens of each story, including `end`, (stories,)."""
        return np.diff(self.starts, append=len(self.ids))


def tokenize_stories(
    tokenizer: PreTrainedTokenizerFast, stories: Sequence[str]
) -> TokenizedStories:
    """Tokenize stories, each followed by the tokenizer's EOS token.

    Raises:
        UserError: the tokenizer has no EOS token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            "model: its tokenizer has no eos_token, which ends a story; set it in"
            " tokenizer_config.json"
        )
    begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    tokenize = WordTokenizer(tokenizer)
    parts: list[Ids] = []
    for start in range(0, len(stories), STORIES_PER_BATCH):
        batch = list(stories[start : start + STORIES_PER_BATCH])
        ids = tokenize(batch)
        if np.count_nonzero(ids == end) == len(batch):
            parts += np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]
        else:  # a story contains the text of the EOS token
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
    """Return the tokens of a text without special tokens and without truncation."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may enable it
    with unknown_words_reported():
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


@dataclass(frozen=True)
class ScoringWindows:
    """The windows in which a model predicts every token of a text once.

    Attributes:
        inputs: the input tokens, (tokens,).
        targets: `targets[i]` is the token after `inputs[i]`, (tokens,).
        windows: rows of (begin, end, counted), (windows, 3): the model reads `inputs[begin:end]`,
            and its predictions at `counted` to `end` are scored.
    """

    inputs: Ids
    targets: Ids
    windows: Ids


def scoring_windows(
    stories: TokenizedStories, protocol: str, context_length: int
) -> ScoringWindows:
    """Return the windows of a protocol of `PROTOCOLS`; each token is scored in exactly one."""
    inputs = np.concatenate([[stories.begin], stories.ids[:-1]])
    if protocol == PACKED:
        begins = np.arange(0, len(inputs), context_length)
        ends = np.minimum(begins + context_length, len(inputs))
        return ScoringWindows(inputs, stories.ids, np.stack([begins, ends, begins], axis=1))
    inputs[stories.starts] = stories.begin
    windows: list[tuple[int, int, int]] = []
    for first, length in zip(stories.starts.tolist(), stories.lengths.tolist(), strict=True):
        last, counted = first + length, first
        while counted < last:
            step = context_length if counted == first else max(1, context_length // 2)
            end = min(counted + step, last)
            windows.append((max(first, end - context_length), end, counted))
            counted = end
    return ScoringWindows(inputs, stories.ids, np.array(windows, dtype=np.int64))
