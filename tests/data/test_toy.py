from __future__ import annotations

import hashlib
import re
from itertools import islice

from tinystories_hf.data.toy import BOYS, GIRLS, LOOKS, THINGS, TOY_FORMAT, toy_stories

NAMES = set(GIRLS) | set(BOYS)
TOY_SHA256 = "6a9338146e44d85a08b85199f74706a6b618d6bfd03470a45ef0f24d0fafd1ac"


def test_the_same_seed_gives_the_same_bytes_on_every_machine() -> None:
    text = "\n".join(toy_stories(1000, seed=0))
    found = (TOY_FORMAT, hashlib.sha256(text.encode()).hexdigest())
    assert found == (1, TOY_SHA256), "the toy stories changed: raise toy.TOY_FORMAT"


def test_another_seed_gives_other_stories() -> None:
    assert not set(toy_stories(200, seed=0)) & set(toy_stories(200, seed=1))


def test_a_smaller_corpus_is_a_prefix_of_a_larger_one() -> None:
    assert list(islice(toy_stories(5000), 50)) == list(toy_stories(50))


def test_stories_hardly_repeat() -> None:
    stories = list(toy_stories(20_000))
    assert len(set(stories)) > 0.999 * len(stories)


def test_names_and_things_are_consistent_within_a_story() -> None:
    for story in toy_stories(500):
        names = set(re.findall(r"[A-Z][a-z]+", story)) & NAMES
        assert 1 <= len(names) <= 2, story
        looks = set(re.findall(rf"({'|'.join(LOOKS)}) (?:{'|'.join(THINGS)})\b", story))
        assert len(looks) <= 1, story


def test_pronouns_fit_the_hero() -> None:
    for story in toy_stories(500):
        hero = re.search(r"named (\w+)", story)
        assert hero is not None
        wrong = r"\b(?:he|him|his)\b" if hero[1] in GIRLS else r"\b(?:she|her)\b"
        assert not re.search(wrong, story, re.IGNORECASE), story


def test_every_story_is_three_paragraphs_of_plain_text() -> None:
    for story in toy_stories(500):
        assert story.isascii()
        assert len(story.split("\n\n")) == 3
        assert story.endswith((".", "!"))
        assert "{" not in story
        assert "  " not in story
