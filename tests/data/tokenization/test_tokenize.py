from __future__ import annotations

import copy
import gc
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tinystories_hf.data.splits import END_OF_TEXT
from tinystories_hf.data.tokenization import tokenize
from tinystories_hf.data.tokenization.tokenize import WordTokenizer
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories

TRAINED = train_tokenizer(toy_stories(200), 320, 64)
PIECES = (
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", " \n ", "\x0b", "a", "Lily", "cat", "42", "7th"),
    *("'", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'x", "''", "'l", "'r", "!'s"),
    *("!", '"', "...", "?!", " - ", "_", "don't", "they're", " 's", "$5", "a1b2", "``"),
)
STRANGE = (
    *("é", "“", "\u2019s", "日本", "🙂"),
    *("\x85", "\xa0", "\x1c", "\x7f", "\0", "<|", END_OF_TEXT),
)


def slow(stories: list[str], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    ids: list[int] = []
    for story in stories:
        ids += tokenizer(story, add_special_tokens=False).input_ids
        ids.append(tokenizer.eos_token_id)
    return ids


def drawn_stories(seed: int, pieces: tuple[str, ...]) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(pieces, k=draw.randrange(40))) for _ in range(60)]


@pytest.mark.parametrize("seed", range(25))
def test_cached_ids_equal_the_tokenizers_for_any_text(seed: int) -> None:
    words = WordTokenizer(TRAINED)
    for pieces in (PIECES, PIECES + STRANGE):
        stories = drawn_stories(seed, pieces)
        assert words(stories).tolist() == slow(stories, TRAINED)
        assert words(stories).tolist() == slow(stories, TRAINED), "and so the second time"


def test_cached_ids_equal_the_real_tokenizers_for_real_stories(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "gpt-neo-tokenizer")
    text = (shared / "data" / "tinystories" / "TinyStories-valid.txt").read_text("utf-8")
    stories = text.split(END_OF_TEXT) + drawn_stories(0, PIECES + STRANGE)
    assert WordTokenizer(tokenizer)(stories).tolist() == slow(stories, tokenizer)


def test_a_full_cache_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "_MAX_WORDS", 64)
    monkeypatch.setattr(tokenize, "_MAX_UNKNOWN", 8)
    words = WordTokenizer(TRAINED)
    for seed in range(5):
        stories = drawn_stories(seed, tuple(f" word{number}" for number in range(500)))
        assert words(stories[:1]).tolist() == slow(stories[:1], TRAINED)
        assert words(stories).tolist() == slow(stories, TRAINED)


def test_a_tokenizer_that_splits_text_differently_is_not_cached() -> None:
    other = train_tokenizer(toy_stories(50), 300, 64)
    backend = other.backend_tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    backend.pre_tokenizer = ByteLevel(add_prefix_space=True)
    words = WordTokenizer(other)
    assert words._library is None
    assert words(["Tom ran.", ""]).tolist() == slow(["Tom ran.", ""], other)


def test_without_a_compiler_the_ids_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "_library", lambda: None)
    stories = drawn_stories(3, PIECES + STRANGE)
    assert WordTokenizer(TRAINED)(stories).tolist() == slow(stories, TRAINED)


def test_the_truncation_of_a_tokenizer_json_is_ignored(tmp_path: Path) -> None:
    TRAINED.save_pretrained(tmp_path)
    cutting = AutoTokenizer.from_pretrained(tmp_path)
    cutting.backend_tokenizer.enable_truncation(4)
    cutting.backend_tokenizer.enable_padding(length=200)
    stories = [*toy_stories(3), "Zoë ran and ran and ran."]
    assert WordTokenizer(cutting)(stories).tolist() == slow(stories, TRAINED)


def test_no_stories_have_no_ids() -> None:
    assert WordTokenizer(TRAINED)([]).tolist() == []
    assert WordTokenizer(TRAINED)(["", ""]).tolist() == [0, 0]


def test_a_word_with_more_tokens_than_bytes_does_not_overflow() -> None:
    """A tokenizer may encode a word as more tokens than the buffer has room for."""
    greedy = train_tokenizer(toy_stories(50), 300, 64)
    words = WordTokenizer(greedy)
    if words._library is None:
        pytest.skip("needs a C++ compiler with OpenMP, which is not there")
    own = greedy.backend_tokenizer

    class Spelling:
        """The tokenizer, but it encodes each word five times."""

        def encode_batch_fast(self, texts: list[str], **options: Any) -> list[Any]:
            return list(own.encode_batch_fast([text * 5 for text in texts], **options))

    words._backend = Spelling()
    stories = ["Tom ran to q q q q q q q q q q q q q q q q.", "xyzzy"]
    assert words(stories).tolist() == slow([story * 5 for story in stories], greedy)


def test_an_unusable_tokenizer_is_refused_without_further_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    without_end = PreTrainedTokenizerFast(tokenizer_object=TRAINED.backend_tokenizer)
    with pytest.raises(TypeError):
        WordTokenizer(without_end)
    gc.collect()
    assert not said


def test_copies_and_threads_share_the_cache_safely() -> None:
    words = WordTokenizer(TRAINED)
    copied = copy.copy(words)
    stories = drawn_stories(1, PIECES)
    right = slow(stories, TRAINED)
    assert words(stories).tolist() == right
    del words
    gc.collect()
    with ThreadPoolExecutor(4) as pool:
        assert all(ids.tolist() == right for ids in pool.map(copied, [stories] * 20))
    # A pointer into this process's memory must not be pickled.
    if copied._library is not None:
        with pytest.raises(Exception, match="pickle"):
            copy.deepcopy(copied)
