"""Tokenizing by looking words up: the same ids as the tokenizer's own, several times as fast."""

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

# Words that are remembered; then it begins anew, so that memory stays flat. TinyStories has 60,000.
_MOST_WORDS = 1 << 18
_UNKNOWN_AT_ONCE = 1 << 14


class _Words(ctypes.c_void_p):
    """The words that a tokenizer remembers: a pointer into `words.cpp`."""


class WordTokenizer:
    """Turns stories into one stream of ids with an EOS after each.

    Words are looked up where the tokenizer cuts them as GPT-2's does, and where a story is plain
    ASCII. All else goes through the tokenizer itself, which also says what a new word is made of.
    Threads take turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.eos = int(tokenizer.eos_token_id)
        self._backend = tokenizer.backend_tokenizer
        # Settings that a tokenizer.json may bring along, and that would cut stories without a word.
        self._backend.no_truncation()
        self._backend.no_padding()
        description = json.loads(self._backend.to_str())
        self._added = [token["content"] for token in description["added_tokens"]]
        self._library = _library() if _cuts_as_gpt2(description) else None
        self._turn = threading.Lock()
        self._begin()

    def __call__(self, stories: list[str]) -> np.ndarray[Any, Any]:
        """Return the ids of stories in order, an EOS after each; shape (tokens,)."""
        with self._turn:
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
        unknown = np.empty((_UNKNOWN_AT_ONCE, 2), dtype=np.int64)
        count = ctypes.c_int64()
        library: Any = self._library
        # So many rounds teach as many words as are remembered; text beyond that has hardly any.
        for _ in range(_MOST_WORDS // _UNKNOWN_AT_ONCE if text.count(b"\0") == len(stories) else 0):
            written = library.words_encode(
                self._words, text, len(text), self.eos, ids.ctypes.data, unknown.ctypes.data,
                _UNKNOWN_AT_ONCE, ctypes.byref(count),
            )  # fmt: skip
            if written < 0:  # a byte of no known kind
                break
            if not count.value:
                return ids[:written].copy()
            words = sorted({text[begin:end] for begin, end in unknown[: count.value].tolist()})
            if not self._learn(words):
                break
        return self._tokenize(stories)

    def _learn(self, words: list[bytes]) -> bool:
        """Remember what words are made of; return whether that was possible."""
        library: Any = self._library
        if library.words_count(self._words) + len(words) > _MOST_WORDS:
            self._begin()
        spelled = [word.decode() for word in words]
        encodings = self._backend.encode_batch_fast(spelled, add_special_tokens=False)
        for word, encoding in zip(words, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.uint32)
            if not library.words_add(self._words, word, len(word), ids.ctypes.data, len(ids)):
                self._begin()
                return False
        return True

    def _begin(self) -> None:
        """Remember no words."""
        if self._library is None:
            return
        self._words = self._library.words_new()
        if not self._words:
            raise MemoryError("there is no memory for the words of the tokenizer")
        # Freed with the last reference; a destructor would meet half-made objects and copies.
        weakref.finalize(self._words, self._library.words_free, self._words.value)


@contextmanager
def unknown_words_reported() -> Iterator[None]:
    """Turn the error of a tokenizer that cannot encode a text into a `UserError`.

    WordLevel and Unigram raise a bare `Exception` at a word they do not know and have no token for.
    """
    try:
        yield
    except Exception as error:
        raise UserError(
            f"tokenizer: it cannot encode all of the text ({error}); give it an unk_token"
        ) from error


def _cuts_as_gpt2(description: dict[str, Any]) -> bool:
    """Return whether words are cut by GPT-2's pattern and nothing looks beyond a word."""
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
    library = native.load_library("data/tokenize.cpp")
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
