from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tinystories_hf.config.command_line import Arguments
from tinystories_hf.data.cleaning import CleaningCounts, clean, repair_mojibake, story_digest

Parse = Callable[..., Arguments]
STORIES = ["A cat.", "", "A dog.", "A cat. ", "  \n", "â€œHi,â€ said Tim.", "A dog."]


def run(parse: Parse, *flags: str) -> tuple[list[str], CleaningCounts]:
    counts = CleaningCounts()
    return list(clean(STORIES, parse(*flags).data, counts)), counts


def test_nothing_is_cleaned_by_default(tiny_arguments: Parse) -> None:
    kept, counts = run(tiny_arguments)
    assert kept == STORIES
    assert (counts.stories_read, counts.stories_kept, counts.empty_stories) == (7, 7, 2)
    assert not counts.digests


def test_stories_read_are_stories_kept_plus_stories_dropped(tiny_arguments: Parse) -> None:
    kept, counts = run(tiny_arguments, "--drop_empty", "--drop_duplicates", "--repair_mojibake")
    assert kept == ["A cat.", "A dog.", "“Hi,” said Tim."]
    dropped = counts.dropped_empty + counts.dropped_duplicates + counts.dropped_overlap
    assert counts.stories_read == len(STORIES) == counts.stories_kept + dropped
    assert (counts.dropped_empty, counts.dropped_duplicates) == (2, 2)
    assert counts.mojibake_repaired == 2


def test_validation_stories_that_occur_in_training_are_dropped(tiny_arguments: Parse) -> None:
    data = tiny_arguments("--drop_validation_overlap").data
    train, validation = CleaningCounts(), CleaningCounts()
    list(clean(["A cat.", "A dog."], data, train))
    kept = list(clean(["A dog.\n", "A hen."], data, validation, train.digests))
    assert kept == ["A hen."]
    assert validation.dropped_overlap == 1


@pytest.mark.parametrize(
    "text",
    [
        "“Hello,” she said. It’s fine… – yes — «oui» naïve café ñ ¡hola!",
        "The price was 5 € and â is a letter.",
        "emoji 🙂 and 中文",
        "",
    ],
)
def test_mojibake_is_repaired_and_other_text_is_unchanged(text: str) -> None:
    assert repair_mojibake(text) == (text, 0)
    as_bytes = "".join(
        bytes([byte]).decode("cp1252", errors="replace").replace("�", chr(byte))
        for byte in text.encode()
    )
    damaged = "".join(as_bytes)
    assert repair_mojibake(damaged)[0] == text


def test_a_closing_quote_without_its_last_byte_is_repaired() -> None:
    assert repair_mojibake("â€œRun!â€ he said.â€\n") == ("“Run!” he said.”\n", 3)
    assert repair_mojibake("â€\u00a0he")[0] == "”\u00a0he"


def test_all_mojibake_of_the_real_sample_is_repaired(shared: Path) -> None:
    text = (shared / "data/tinystories/TinyStories-train.txt").read_text(encoding="utf-8")
    text += (shared / "data/tinystories/TinyStories-valid.txt").read_text(encoding="utf-8")
    repaired, count = repair_mojibake(text)
    assert count == text.count("â€") == 379
    assert "â" not in repaired
    assert "†" not in repaired
    assert repair_mojibake(repaired) == (repaired, 0)


def test_digests_ignore_surrounding_white_space_only() -> None:
    assert story_digest("a b") == story_digest("\na b ")
    assert story_digest("a b") != story_digest("a  b")
