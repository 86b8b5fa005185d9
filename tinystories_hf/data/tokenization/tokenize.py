"""Tokenization with a cache of words: the same ids as the tokenizer's, several times as fast."""

from __future__ import annotations

import ctypes
import functools
import json
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from tinystories_hf.core import native
from tinystories_hf.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Words in the cache; when it is full, it is emptied to bound the memory. TinyStories has 60,000.
_MAX_WORDS = 1 << 18
_MAX_UNKNOWN = 1 << 14


class _Words(ctypes.c_void_p):
    """A pointer to the cache of words in `tokenize.cpp`."""


class WordTokenizer:
    """Converts stories into one stream of ids with an EOS after each.

    If the tokenizer splits text into words like GPT-2's, the words of ASCII stories are looked up
    in a cache. New words and all other stories are encoded by the tokenizer itself. Calls from
    several threads are serialized by a lock.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.eos = int(tokenizer.eos_token_id)
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer.json may set these, and they would silently truncate or pad stories.
        self._backend.no_truncation()
        self._backend.no_padding()
        description = json.loads(self._backend.to_str())
        self._added = [token["content"] for token in description["added_tokens"]]
        self._library = _library() if _splits_like_gpt2(description) else None
        self._lock = threading.Lock()
        self._clear_cache()

    def __call__(self, stories: list[str]) -> np.ndarray[Any, Any]:
        """Return the ids of stories in order, an EOS after each; shape (tokens,)."""
        with self._lock:
            parts = [
                self._look_up(list(group)) if plain else self._tokenize(list(group))
                for plain, group in groupby(stories, key=self._is_plain)
            ]
        return np.concatenate([np.empty(0, np.uint32), *parts])

    def _is_plain(self, story: str) -> bool:
        return (
            self._library is not None
            and story.isascii()
            and not any(token in story for token in self._added)
        )

    def _tokenize(self, stories: list[str]) -> np.ndarray[Any, Any]:
        ids: list[int] = []
        with unknown_words_reported():
            encodings = self._backend.encode_batch_fast(stories, add_special_tokens=False)
        for encoding in encodings:
            ids += encoding.ids
            ids.append(self.eos)
        return np.array(ids, dtype=np.uint32)

    def _look_up(self, stories: list[str]) -> np.ndarray[Any, Any]:
        text = b"".join(story.encode() + b"\0" for story in stories)
        ids = np.empty(len(text), dtype=np.uint32)
        unknown = np.empty((_MAX_UNKNOWN, 2), dtype=np.int64)
        count = ctypes.c_int64()
        library: Any = self._library
        # At most as many rounds as fill the cache; a text with more new words is not worth caching.
        for _ in range(_MAX_WORDS // _MAX_UNKNOWN if text.count(b"\0") == len(stories) else 0):
            written = library.words_encode(
                self._words, text, len(text), self.eos, ids.ctypes.data, unknown.ctypes.data,
                _MAX_UNKNOWN, ctypes.byref(count),
            )  # fmt: skip
            if written < 0:  # a byte that the lookup does not support
                break
            if not count.value:
                return ids[:written].copy()
            words = sorted({text[begin:end] for begin, end in unknown[: count.value].tolist()})
            if not self._add_words(words):
                break
        return self._tokenize(stories)

    def _add_words(self, words: list[bytes]) -> bool:
        """Add words to the cache; return whether that was possible."""
        library: Any = self._library
        if library.words_count(self._words) + len(words) > _MAX_WORDS:
            self._clear_cache()
        spelled = [word.decode() for word in words]
        encodings = self._backend.encode_batch_fast(spelled, add_special_tokens=False)
        for word, encoding in zip(words, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.uint32)
            if not library.words_add(self._words, word, len(word), ids.ctypes.data, len(ids)):
                self._clear_cache()
                return False
        return True

    def _clear_cache(self) -> None:
        """Start with an empty cache."""
        if self._library is None:
            return
        self._words = self._library.words_new()
        if not self._words:
            raise MemoryError("not enough memory for the tokenizer's cache of words")
        # Freed with the last reference; __del__ would also run for copies and failed __init__.
        weakref.finalize(self._words, self._library.words_free, self._words.value)


@contextmanager
def unknown_words_reported() -> Iterator[None]:
    """Raise a `UserError` if a tokenizer cannot encode a text.

    WordLevel and Unigram raise a bare `Exception` for an unknown word if they have no unk_token.
    """
    try:
        yield
    except Exception as error:
        raise UserError(
            f"tokenizer: it cannot encode all of the text ({error}); add an unk_token to it"
        ) from error


def _splits_like_gpt2(description: dict[str, Any]) -> bool:
    """Return whether text is split by GPT-2's pattern and each word is encoded independently."""
    expected = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    cutter = description["pre_tokenizer"] or {}
    model = description["model"]
    return (
        description["normalizer"] is None
        and {key: cutter.get(key) for key in expected} == expected
        and model["type"] == "BPE"
        and not model.get("dropout")
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = native.load_library("data/tokenization/tokenize.cpp")
    if library is not None:
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        library.words_new.restype = _Words
        library.words_free.argtypes = (pointer,)
        library.words_count.argtypes = (pointer,)
        library.words_count.restype = number
        library.words_add.restype = ctypes.c_bool
        library.words_add.argtypes = (pointer, ctypes.c_char_p, number, pointer, number)
        library.words_encode.argtypes = (
            pointer, ctypes.c_char_p, number, ctypes.c_uint32, pointer, pointer, number, pointer,
        )  # fmt: skip
        library.words_encode.restype = number
    return library
