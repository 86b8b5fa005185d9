"""A tokenizer that is cut to its most common tokens loses no text."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.conftest import SHARED
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.splits import END_OF_TEXT
from tinystories_hf.data.tokenization.cut_tokenizer import (
    count_tokens,
    cut_tokenizer,
    read_token_counts,
)
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories

Parse = Callable[..., Arguments]
STORIES = list(toy_stories(150, 1))
WHOLE = train_tokenizer(STORIES, 330, 64)
COUNTS = count_tokens(WHOLE, STORIES).tolist()
real = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real tokenizer in ../shared")


def cut(size: int, counts: list[int] | None = None) -> PreTrainedTokenizerFast:
    return cut_tokenizer(WHOLE, size, counts or COUNTS, 64, END_OF_TEXT)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = tokenizer(text)["input_ids"]
    return found


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    found: list[str] = tokenizer.convert_ids_to_tokens(ids(tokenizer, text))
    return found


def random_texts(number: int) -> list[str]:
    draw = random.Random(3)
    raw = [bytes(draw.randrange(256) for _ in range(draw.randrange(40))) for _ in range(number)]
    return [
        *(each.decode("utf-8", "replace") for each in raw),
        "Zoë said “ßΩ漢字” 🎈\r\n\t  ok",
        "",
    ]


@pytest.mark.parametrize("size", [257, 258, 280, 329, 330])
def test_every_text_comes_back_exactly(size: int) -> None:
    tokenizer = cut(size)
    assert len(tokenizer) == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    for text in [*STORIES[:2], *random_texts(200)]:
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_text_without_a_cut_token_keeps_its_tokens_and_other_text_gets_more() -> None:
    smaller = cut(300)
    left = smaller.get_vocab().keys()
    same = changed = 0
    words = ["Once", "there", "was", "a", "cat", "dog", "The", "sat", "ran", "and"]
    for word in [*words, *(f" {word}" for word in words)]:
        before, after = pieces(WHOLE, word), pieces(smaller, word)
        if set(before) <= left:
            assert before == after
            same += 1
        else:
            assert len(before) < len(after)
            changed += 1
    assert same
    assert changed


def test_the_most_common_tokens_are_kept_and_of_equal_ones_the_lower_id() -> None:
    # "Once" needs its parts; the last token of the vocabulary is asked for most.
    vocabulary = WHOLE.get_vocab()
    last = max(vocabulary, key=vocabulary.__getitem__)
    asked = [0] * len(WHOLE)
    asked[vocabulary[last]] = 5
    assert last in cut(300, asked).get_vocab()
    even = cut(290, [1] * len(WHOLE)).get_vocab()
    first = [token for token, number in vocabulary.items() if number < 290]
    assert set(first) == even.keys()
    assert even[END_OF_TEXT] == 0


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="too small for the 257 bytes and special tokens"):
        cut(256)


def test_it_is_saved_as_a_plain_fast_tokenizer(tmp_path: Path) -> None:
    tokenizer = cut(290)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*STORIES[:2], *random_texts(20)]:
        assert loaded(text)["input_ids"] == ids(tokenizer, text)
    assert loaded.eos_token == END_OF_TEXT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("token,n\n1,2\n", "has no columns `id` and `count`"),
        ("id,count\n0,5\n330,1\n", "line 3 of .* is not an id below 330"),
        ("id,count\n0,many\n", "line 2 of .* is not an id below 330"),
        ("id,count\n0\n", "line 2 of .* is not an id"),
        ("", "has no columns"),
    ],
)
def test_a_file_that_has_no_counts_of_this_tokenizer_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^token_counts: .*{message}"):
        read_token_counts(path, 330)
    with pytest.raises(UserError, match=r"^token_counts"):
        read_token_counts(tmp_path / "none.csv", 330)


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[str, ...]:
    """Return the flags of a corpus and of a tokenizer with 330 entries."""
    (tmp_path / "stories.txt").write_text(f"\n{END_OF_TEXT}\n".join(STORIES))
    WHOLE.save_pretrained(tmp_path / "tokenizer")
    stories = ("--dataset", str(tmp_path / "stories.txt"), "--validation_share", "0.3")
    return (*stories, "--tokenizer", str(tmp_path / "tokenizer"), "--context_length", "16")


def test_preparation_cuts_by_the_training_stories_or_by_a_file(
    tiny_arguments: Parse, corpus: tuple[str, ...], tmp_path: Path
) -> None:
    counts = tmp_path / "counts.csv"
    lines = [f"{number},{count}" for number, count in enumerate(COUNTS)]
    counts.write_text("\n".join(["id,count", *lines]))
    found = {}
    for name, more in (("stories", ()), ("file", ("--token_counts", str(counts)))):
        arguments = tiny_arguments(*corpus, "--vocab_size", "290", *more)
        prepared = prepare(arguments.data, 290, quiet=True)
        assert len(prepared.tokenizer) == 290
        manifest = prepared.manifest
        train = manifest.split("train")
        assert train.tokens_in == train.tokens_out + train.tokens_dropped
        again = prepare(arguments.data, 290, quiet=True)
        assert again.manifest == manifest
        assert len(again.tokenizer) == 290
        found[name] = manifest
    for manifest in found.values():
        assert manifest.tokenizer["cut"]["entries_before"] == 330
        assert "the lower id first" in manifest.tokenizer["cut"]["rule"]
    assert found["stories"].fingerprint != found["file"].fingerprint
    assert found["stories"].tokenizer["cut"]["counts"] == "the training stories"
    assert found["file"].tokenizer["cut"]["counts"] == "counts.csv"
    assert len(found["file"].tokenizer["cut"]["counts_sha256"]) == 64
    # Counted in the training stories, without the end tokens.
    train = found["stories"].split("train")
    before = found["stories"].tokenizer["cut"]["tokens_before"]
    assert 0 < before < train.tokens_in - train.stories_kept
    whole = prepare(tiny_arguments(*corpus, "--vocab_size", "330").data, 330, quiet=True)
    assert whole.manifest.tokenizer["cut"] is None
    assert whole.manifest.split("train").tokens_in == before + train.stories_kept


def test_what_cannot_be_counted_or_cut_is_refused(
    tiny_arguments: Parse, corpus: tuple[str, ...], tmp_path: Path
) -> None:
    stream = tiny_arguments(*corpus, "--streaming", "--max_steps", "5").data
    with pytest.raises(UserError, match=r"streaming: .* to choose 290 tokens; give --token_counts"):
        prepare(stream, 290, quiet=True)
    unused = tiny_arguments(*corpus, "--token_counts", "counts.csv").data
    with pytest.raises(UserError, match="token_counts: nothing is cut; lower vocab_size"):
        prepare(unused, 330, quiet=True)
    with pytest.raises(UserError, match="has 330 entries but vocab_size is 331"):
        prepare(tiny_arguments(*corpus).data, 331, quiet=True)
    two = ("--dataset", corpus[1], corpus[1], "--dataset_weights", "1", "1", *corpus[2:])
    with pytest.raises(UserError, match="has 330 entries but vocab_size is 290"):
        prepare(tiny_arguments(*two).data, 290, quiet=True)


@real
def test_the_real_tokenizer_is_cut_to_the_papers_ten_thousand() -> None:
    """By the counts of the whole corpus the sample becomes 0.2% longer."""
    whole = AutoTokenizer.from_pretrained(SHARED / "data" / "gpt-neo-tokenizer")
    counts = read_token_counts(
        SHARED / "data" / "vocabulary" / "gpt_neo_token_counts.csv", len(whole)
    )
    smaller = cut_tokenizer(whole, 10_000, counts, 512, END_OF_TEXT)
    text = (SHARED / "data" / "tinystories" / "TinyStories-valid.txt").read_text(encoding="utf-8")
    stories = [story.strip() for story in text.split(END_OF_TEXT) if story.strip()]
    lengths = [count_tokens(each, stories).sum() for each in (whole, smaller)]
    assert lengths[0] < lengths[1] < 1.01 * lengths[0]
    left = smaller.get_vocab().keys()
    same = 0
    for story in stories:
        assert smaller.decode(ids(smaller, story)) == story
        before = pieces(whole, story)
        if set(before) <= left:
            same += 1
            assert pieces(smaller, story) == before
    assert same > len(stories) / 2
    for text in random_texts(300):
        assert smaller.decode(ids(smaller, text)) == text
