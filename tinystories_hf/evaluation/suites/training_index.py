"""An index of the words of a training split, and exact searches in it.

The index is the split as memory-mapped word ids. A search scans it once and keeps only the
generations in memory, so the result is exact and the memory use independent of the corpus size.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core import native
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.files import appearing, reporting_full_disk
from tinystories_hf.data import cleaning
from tinystories_hf.data.cleaning import CleaningCounts, clean
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.prepare import prepared_root
from tinystories_hf.data.splits import Split, stories_with_progress
from tinystories_hf.evaluation.suites.ngrams import Words, kgrams, words_of

# Word ids: 0 ends a story, and the highest id is a word that does not occur in training.
END, _UNKNOWN = 0, 2**32 - 1
# The version of the format, part of the cache name. Raise it when the same text gives other files;
# tests/evaluation/suites/test_memorization.py fails until then.
INDEX_FORMAT = 1
STORIES_PER_WRITE = 4096
# The limit for one search: the C++ code needs up to two states per word, numbered with 31 bits.
_MAX_WORDS = 2**30


@dataclass(frozen=True)
class IndexManifest:
    """The source and size of an index."""

    source: dict[str, Any]
    cleaning: list[str]
    stories: int
    words: int
    vocabulary: int


@dataclass(frozen=True)
class Nearest:
    """The training story that shares most k-grams with a text, and the Rouge-k precision."""

    story: int | None
    precision: float


class TrainingIndex:
    """An index of a training split; use `load_training_index` to build or open one."""

    def __init__(self, folder: Path) -> None:
        """Open an index.

        Raises:
            UserError: a file of the index cannot be read, is damaged, or does not match the others.
        """
        self.folder = folder
        try:
            self.manifest = IndexManifest(
                **json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            )
            self._words = np.memmap(folder / "words.raw", dtype=np.uint32, mode="r")
            self._starts = np.load(folder / "starts.npy")
            spelled = (folder / "vocabulary.txt").read_text(encoding="utf-8")
            self._spelled = ["", *spelled.split("\n")] if spelled else [""]
            self._check()
        except PermissionError as error:
            raise UserError(f"prepared_dir: no permission to read {error.filename}") from None
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise UserError(
                f"prepared_dir: {folder} is a damaged index of the training split ({error}); remove"
                " the folder, and the next evaluation builds it again"
            ) from None
        self._ids = {word: number for number, word in enumerate(self._spelled) if word}

    def _check(self) -> None:
        """Raise a `ValueError` for invalid offsets, which the C++ code would not check."""
        starts, stories, words = self._starts, self.manifest.stories, len(self._words)
        if starts.dtype != np.int64 or starts.shape != (stories + 1,) or stories < 1:
            raise ValueError(f"starts.npy does not contain the offsets of {stories} stories")
        if starts[0] != 0 or starts[-1] != words or np.any(np.diff(starts) < 1):
            raise ValueError(f"starts.npy does not match the {words} words of words.raw")
        if words != self.manifest.words:
            raise ValueError(f"words.raw has {words} words, not {self.manifest.words}")
        if len(self._spelled) - 1 != self.manifest.vocabulary:
            raise ValueError(f"vocabulary.txt does not have {self.manifest.vocabulary} words")

    def __contains__(self, word: object) -> bool:
        """Return whether the word occurs in training."""
        return word in self._ids

    def counts(self, grams: Sequence[Words]) -> list[int]:
        """Return how often each k-gram occurs in training; all must have the same k."""
        if not grams:
            return []
        ids, places = np.unique(self._encode(grams), axis=0, return_inverse=True)
        ids = np.ascontiguousarray(ids)
        counts = np.zeros(len(ids), dtype=np.int64)
        self._scan("counts", _address(ids), *ids.shape, _address(counts))
        return [int(count) for count in counts[places.reshape(-1)]]

    def nearest(self, texts: Sequence[Words], k: int) -> list[Nearest]:
        """Return for each text the training story with the highest Rouge-k precision."""
        found = [sorted(set(kgrams(words, k))) for words in texts]
        grams = sorted(set().union(*map(set, found)))
        if not grams:
            return [Nearest(None, 0.0) for _ in texts]
        number = {gram: at for at, gram in enumerate(grams)}
        users: list[list[int]] = [[] for _ in grams]
        for text, own in enumerate(found):
            for gram in own:
                users[number[gram]].append(text)
        ends = np.cumsum([0, *map(len, users)], dtype=np.int64)
        flat = np.array(list(itertools.chain.from_iterable(users)), dtype=np.int32)
        ids = self._encode(grams)
        story, shared = (np.zeros(len(texts), dtype=np.int64) for _ in range(2))
        self._scan(
            "nearest", _address(ids), *ids.shape, _address(ends), _address(flat), len(texts),
            _address(story), _address(shared),
        )  # fmt: skip
        return [
            Nearest(int(at) if at >= 0 else None, int(same) / max(1, len(own)))
            for at, same, own in zip(story, shared, found, strict=True)
        ]

    def longest_runs(self, texts: Sequence[Words]) -> list[int]:
        """Return for each text the length of its longest run of words that occurs in one story."""
        starts = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        ids = np.array([self._id(word) for text in texts for word in text], dtype=np.uint32)
        if len(ids) > _MAX_WORDS:
            raise ValueError(f"{len(ids)} words in one search, more than the limit of {_MAX_WORDS}")
        longest = np.zeros(len(texts), dtype=np.int64)
        self._scan("longest", _address(ids), _address(starts), len(texts), _address(longest))
        return [int(length) for length in longest]

    def story(self, number: int) -> list[str]:
        """Return the words of a training story."""
        ids = self._words[self._starts[number] : self._starts[number + 1] - 1]
        return [self._spelled[word] for word in ids.tolist()]

    def _id(self, word: str) -> int:
        return self._ids.get(word, _UNKNOWN)

    def _encode(self, grams: Sequence[Words]) -> np.ndarray[Any, Any]:
        if not all(grams):
            raise ValueError("a k-gram must have at least one word")
        return np.array([[self._id(word) for word in gram] for gram in grams], dtype=np.uint32)

    def _scan(self, what: str, *arguments: int) -> None:
        corpus = _address(self._words), _address(self._starts), len(self._starts) - 1
        if not getattr(_library(), f"scan_{what}")(*corpus, *arguments):
            raise RunError(
                f"not enough memory to search the index {self.folder} ({what}); free memory and"
                " run the same command to resume"
            )


def load_training_index(data: DataArguments, *, quiet: bool = False) -> TrainingIndex:
    """Build the index of the training split, or open it if it is cached.

    Raises:
        UserError: the dataset cannot be read, or `training_scan.cpp` cannot be compiled.
    """
    _library()  # reports a missing compiler before the index is built
    split = open_corpus(data).train
    once = replace(data, drop_validation_overlap=False)
    parts = {
        "format": INDEX_FORMAT,
        "train": split.identity,
        "cleaning": cleaning.options(once),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    folder = prepared_root(data) / f"index-{Path(data.dataset).stem[:50]}-{digest}"
    if not folder.exists():
        new = appearing(folder, "prepared_dir", "indexing")
        with reporting_full_disk(folder, "indexing"), new as work:
            if work is not None:
                seen = stories_with_progress(split, "indexing training", quiet)
                stories = clean(seen, once, CleaningCounts())
                write_index(work, stories, split, cleaning.options(once))
    return TrainingIndex(folder)


def write_index(
    folder: Path, stories: Iterable[str], split: Split, cleaned: list[str]
) -> IndexManifest:
    """Write an index; only the vocabulary and a few stories are kept in memory.

    Raises:
        UserError: there are no stories.
    """
    ids: defaultdict[str, int] = defaultdict(itertools.count(1).__next__)
    waiting, starts, written = array("I"), array("q", [0]), 0
    with (folder / "words.raw").open("wb") as stream:
        for story in stories:
            waiting.extend(map(ids.__getitem__, words_of(story)))
            waiting.append(END)
            starts.append(written + len(waiting))
            if len(starts) % STORIES_PER_WRITE == 0:
                waiting.tofile(stream)
                written += len(waiting)
                waiting = array("I")
        waiting.tofile(stream)
    if len(starts) == 1:
        raise UserError(
            "dataset: the training split has no stories; check train_file and text_column"
        )
    manifest = IndexManifest(split.identity, cleaned, len(starts) - 1, starts[-1], len(ids))
    np.save(folder / "starts.npy", np.frombuffer(starts, dtype=np.int64))
    (folder / "vocabulary.txt").write_text("\n".join(ids), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    return manifest


def _address(values: np.ndarray[Any, Any]) -> int:
    """Return the memory address of an array."""
    if not values.flags.c_contiguous:
        raise ValueError("an array for the C++ library must be contiguous")
    return int(values.ctypes.data)


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = native.compile_library("evaluation/suites/training_scan.cpp")
    except native.NotCompiledError as error:
        raise UserError(f"searching the training split: {error}") from None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    where = (pointer, pointer, number)
    library.scan_counts.argtypes = (*where, pointer, number, number, pointer)
    library.scan_nearest.argtypes = (
        *where, pointer, number, number, pointer, pointer, number, pointer, pointer,
    )  # fmt: skip
    library.scan_longest.argtypes = (*where, pointer, pointer, number, pointer)
    for scan in (library.scan_counts, library.scan_nearest, library.scan_longest):
        scan.restype = ctypes.c_bool
    return library
