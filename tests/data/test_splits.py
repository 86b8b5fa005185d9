"""Holding out stories by their hash, and progress bars."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import strategies as st

from tests.properties.drawing import holds_for
from tests.properties.test_readers import written
from tests.support.bars import Bars
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.corpus import open_corpus
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.readers.formats import SUFFIXES
from tinystories_hf.data.splits import Corpus, Split, hold_out, stories_with_progress
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories

Parse = Callable[..., Arguments]


def split_of(stories: list[str]) -> Split:
    return Split({}, lambda _: iter(stories))


def texts(split: Split) -> list[str]:
    return [story for story in split.read() if story is not None]


def test_held_out_stories_are_a_seeded_share_and_copies_are_in_one_split() -> None:
    stories = [f"story {number % 4000}" for number in range(5000)]
    whole = split_of(stories)
    parts = hold_out(whole, 0.1, seed=1)
    train, validation = texts(parts.train), texts(parts.validation)
    assert sorted(train + validation) == sorted(stories)
    assert not set(train) & set(validation)
    assert 0.08 < len(validation) / len(stories) < 0.12
    again = hold_out(split_of(stories[::-1]), 0.1, seed=1)
    assert set(texts(again.validation)) == set(validation), "the order does not matter"
    assert set(texts(hold_out(whole, 0.1, seed=2).validation)) != set(validation)


def parts_of(stories: list[str], share: float, seed: int) -> Corpus:
    return hold_out(split_of(stories), share, seed)


@holds_for(
    200,
    stories=st.lists(st.text(max_size=3), max_size=8),
    share=st.sampled_from([1e-9, 0.05, 0.5, 0.95, 1 - 1e-9]),
    seed=st.integers(-5, 5),
    data=st.data(),
)
def test_two_different_stories_give_two_splits_in_any_order(
    folder: Path, stories: list[str], share: float, seed: int, data: Any
) -> None:
    parts = parts_of(stories, share, seed)
    train, validation = texts(parts.train), texts(parts.validation)
    assert sorted(train + validation) == sorted(stories)
    assert not set(train) & set(validation)
    if len({story for story in stories if story.strip()}) > 1:
        assert any(map(str.strip, train))
        assert any(map(str.strip, validation))
    moved = parts_of(data.draw(st.permutations(stories)), share, seed)
    assert sorted(texts(moved.validation)) == sorted(validation)


def test_of_few_stories_the_one_with_the_smallest_hash_is_held_out() -> None:
    stories = list(toy_stories(400))
    order = [texts(parts_of(stories, share / 400, 3).validation) for share in range(1, 60)]
    first = next(held for held in order if len(held) == 1)
    for count in (2, 3, 8, 20):
        others = [story for story in stories if story not in first][:count]
        assert texts(parts_of([*others, *first], 1e-6, 3).validation) == first


def test_reading_stops_once_both_splits_have_a_story() -> None:
    given = itertools.count()
    many = Split({}, lambda _: (f"story {next(given)}" for _ in range(1_000_000)))
    parts = hold_out(many, 0.05, 0)
    assert next(parts.validation.read())
    assert next(given) < 2000


@pytest.mark.parametrize("streaming", [(), ("--streaming",)])
@pytest.mark.parametrize("count", [8, 12, 20])
def test_a_text_of_few_stories_has_a_validation_split(
    tiny_arguments: Parse, tmp_path: Path, count: int, streaming: tuple[str, ...]
) -> None:
    path = tmp_path / "s.txt"
    path.write_bytes(written(".txt", [story * 3 for story in toy_stories(count)]))
    train_tokenizer(toy_stories(200), 320, 64).save_pretrained(tmp_path / "tok")
    made = ("--tokenizer", str(tmp_path / "tok"), "--context_length", "16", *streaming)
    arguments = tiny_arguments("--dataset", str(path), *made)
    prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
    assert prepared.manifest.validation.stories_kept >= 1
    if not streaming:
        assert prepared.manifest.split("train").stories_kept < count
    path.write_bytes(written(".txt", ["The same story."] * 9))
    with pytest.raises(
        UserError, match=r"no validation stories.*validation_share.*separator.*_file"
    ):
        prepare(arguments.data, arguments.model.vocab_size, quiet=True)


@pytest.mark.parametrize(
    "kind", [*SUFFIXES, ".txt.gz", ".jsonl.zst", ".csv.bz2", "saved", "toy", "empty.txt"]
)
def test_every_progress_bar_reaches_its_total(
    tiny_arguments: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    bars = Bars()
    monkeypatch.setattr("tqdm.auto.tqdm", bars)
    path, stories = tmp_path / f"s{kind}", [f"“{story}”" for story in toy_stories(300)]
    if kind == "saved":
        datasets.Dataset.from_dict({"text": stories}).save_to_disk(str(path))
    elif kind != "toy":
        path.write_bytes(b"" if kind == "empty.txt" else written(kind, stories))
    found = open_corpus(tiny_arguments("--dataset", "toy" if kind == "toy" else str(path)).data)
    for part in (found.train, found.validation):
        assert bool(list(stories_with_progress(part, "reading", quiet=False))) == (
            kind != "empty.txt"
        )
    assert bars.have_ended(2)
    assert all(bar.total for bar in bars.made) == (kind != "empty.txt")
