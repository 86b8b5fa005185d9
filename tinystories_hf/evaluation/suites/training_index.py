"""All words of a training split on disk, and the questions that memorisation asks of them.

The index is the split as word ids, memory-mapped. A question reads it through once and holds only
the generations in memory, so that the answer is exact and memory stays flat, whatever the corpus.
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

from tinystories_hf.config.arguments import DataArguments
from tinystories_hf.core import native
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.files import appearing, reporting_full_disk
from tinystories_hf.data import cleaning
from tinystories_hf.data.cleaning import CleaningCounts, clean
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.prepare import prepared_root
from tinystories_hf.data.splits import Split, stories_with_progress
from tinystories_hf.evaluation.suites.ngrams import Words, kgrams, words_of

# Word ids; 0 ends a story, and a word that training does not know has the last id of all.
END, _UNKNOWN = 0, 2**32 - 1
# The version of an index, part of the name that it is cached by. Raise it when the same text gives
# other files; tests/evaluation/suites/test_memorization.py fails until then.
INDEX_FORMAT = 1
STORIES_PER_WRITE = 4096
# Of the texts of one question: the C++ numbers up to two states a word in 31 bits.
_MOST_WORDS = 2**30


@dataclass(frozen=True)
class IndexManifest:
    """What an index holds and where it came from."""

    source: dict[str, Any]
    cleaning: list[str]
    stories: int
    words: int
    vocabulary: int


@dataclass(frozen=True)
class Nearest:
    """The training story that shares most k-grams with a text; `precision` is Rouge-k's."""

    story: int | None
    precision: float


class TrainingIndex:
    """The words of a training split; open one with `load_training_index`."""

    def __init__(self, folder: Path) -> None:
        """Open an index.

        Raises:
            UserError: a file of it cannot be read, is damaged, or does not fit the others.
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
                " the folder, and the next evaluation writes it again"
            ) from None
        self._ids = {word: number for number, word in enumerate(self._spelled) if word}

    def _check(self) -> None:
        """Refuse places of stories that are not in the words: the C++ reads wherever they point."""
        starts, stories, words = self._starts, self.manifest.stories, len(self._words)
        if starts.dtype != np.int64 or starts.shape != (stories + 1,) or stories < 1:
            raise ValueError(f"starts.npy does not hold the places of {stories} stories")
        if starts[0] != 0 or starts[-1] != words or np.any(np.diff(starts) < 1):
            raise ValueError(f"starts.npy does not fit the {words} words of words.raw")
        if words != self.manifest.words:
            raise ValueError(f"words.raw has {words} words, not {self.manifest.words}")
        if len(self._spelled) - 1 != self.manifest.vocabulary:
            raise ValueError(f"vocabulary.txt has not {self.manifest.vocabulary} words")

    def __contains__(self, word: object) -> bool:
        """Return whether the word stands in training."""
        return word in self._ids

    def counts(self, grams: Sequence[Words]) -> list[int]:
        """Return how often each k-gram stands in training; all have the same k."""
        if not grams:
            return []
        ids, places = np.unique(self._encode(grams), axis=0, return_inverse=True)
        ids = np.ascontiguousarray(ids)
        counts = np.zeros(len(ids), dtype=np.int64)
        self._scan("counts", _at(ids), *ids.shape, _at(counts))
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
            "nearest", _at(ids), *ids.shape, _at(ends), _at(flat), len(texts), _at(story),
            _at(shared),
        )  # fmt: skip
        return [
            Nearest(int(at) if at >= 0 else None, int(same) / max(1, len(own)))
            for at, same, own in zip(story, shared, found, strict=True)
        ]

    def longest_runs(self, texts: Sequence[Words]) -> list[int]:
        """Return the length of the longest run of words of each text that stands in one story."""
        starts = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        ids = np.array([self._id(word) for text in texts for word in text], dtype=np.uint32)
        if len(ids) > _MOST_WORDS:
            raise ValueError(f"{len(ids)} words of generations at once, more than {_MOST_WORDS}")
        longest = np.zeros(len(texts), dtype=np.int64)
        self._scan("longest", _at(ids), _at(starts), len(texts), _at(longest))
        return [int(length) for length in longest]

    def story(self, number: int) -> list[str]:
        """Return the words of a training story."""
        ids = self._words[self._starts[number] : self._starts[number + 1] - 1]
        return [self._spelled[word] for word in ids.tolist()]

    def _id(self, word: str) -> int:
        return self._ids.get(word, _UNKNOWN)

    def _encode(self, grams: Sequence[Words]) -> np.ndarray[Any, Any]:
        if not all(grams):
            raise ValueError("a k-gram has to have a word")
        return np.array([[self._id(word) for word in gram] for gram in grams], dtype=np.uint32)

    def _scan(self, what: str, *arguments: int) -> None:
        corpus = _at(self._words), _at(self._starts), len(self._starts) - 1
        if not getattr(_library(), f"scan_{what}")(*corpus, *arguments):
            raise RunError(
                f"not enough memory to look generations up in {self.folder} ({what}); end other"
                " programs, and the same command resumes"
            )


def load_training_index(data: DataArguments, *, quiet: bool = False) -> TrainingIndex:
    """Return the index of a corpus' training split, made now or served from the cache.

    Raises:
        UserError: the corpus cannot be read, or `training_scan.cpp` cannot be compiled.
    """
    _library()  # a missing compiler is reported before the work, not after it
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
    """Write the index of stories; memory holds their vocabulary and a few of them.

    Raises:
        UserError: there is no story.
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
        raise UserError("the training split has no stories; is the dataset the right one?")
    manifest = IndexManifest(split.identity, cleaned, len(starts) - 1, starts[-1], len(ids))
    np.save(folder / "starts.npy", np.frombuffer(starts, dtype=np.int64))
    (folder / "vocabulary.txt").write_text("\n".join(ids), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    return manifest


def _at(values: np.ndarray[Any, Any]) -> int:
    """Return where an array lies in memory."""
    if not values.flags.c_contiguous:
        raise ValueError("an array for the library has to lie in one piece")
    return int(values.ctypes.data)


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = native.compile_library("evaluation/suites/training_scan.cpp")
    except native.NotCompiledError as error:
        raise UserError(f"looking stories up in training: {error}") from None
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
