"""For any stories, every token is counted and kept, and the rows decode to the stories."""

from __future__ import annotations

import functools
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.properties.drawing import holds_for
from tests.properties.test_readers import data_of, written
from tinystories_hf.core.errors import UserError
from tinystories_hf.data import packing
from tinystories_hf.data import prepare as data_module
from tinystories_hf.data.manifest import token_stream
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.readers import text_files
from tinystories_hf.data.readers.formats import SUFFIXES
from tinystories_hf.data.splits import END_OF_TEXT
from tinystories_hf.data.tokenization import tokenize
from tinystories_hf.data.tokenization.tokenize import WordTokenizer
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories

VOCABULARY = 320
TRAINED = train_tokenizer(toy_stories(200), VOCABULARY, 64)
PIECES = (
    *(
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "\x0b\x0c",
        "\0",
        "\x01",
        "\x1c",
        "\x7f",
        "\x85",
        "\xa0",
    ),
    *(
        "a",
        "Lily",
        "42",
        "'s",
        "'ll",
        "'",
        "don't",
        "!",
        "...",
        "_",
        "<|",
        "<|endoftext",
        "endoftext|>",
    ),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "\u200d",
        "\u2028",
        "\ufeff",
        "“",
        "日本",
        "🙂",
        "👩\u200d👧",
        "\U0010ffff",
    ),
)
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)


@holds_for(150, stories=st.lists(texts, min_size=1, max_size=5), most=st.sampled_from([4, 1 << 18]))
def test_cached_ids_equal_the_tokenizers_and_decode_to_the_text(
    folder: Path, stories: list[str], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "_MAX_WORDS", most)
        patch.setattr(tokenize, "_MAX_UNKNOWN", min(most, 1 << 14))
        found = WordTokenizer(TRAINED)(stories).tolist()
        patch.setattr(tokenize, "_library", lambda: None)
        own = WordTokenizer(TRAINED)(stories).tolist()
    assert found == own
    spelled = TRAINED.backend_tokenizer.decode(found, skip_special_tokens=False)
    assert spelled == "".join(story + END_OF_TEXT for story in stories)


# In a text file, newlines around stories are layout, there is one line end, and no NUL.
lines = texts.map(lambda text: text.replace("\r", "").replace("\0", "").strip("\n"))
lines = lines.filter(lambda text: END_OF_TEXT not in text)


@functools.cache
def tokenizer_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the tokenizer; it is removed when the tests end."""
    folder = tempfile.TemporaryDirectory()
    TRAINED.save_pretrained(folder.name)
    return folder


@holds_for(
    100,
    stories=st.lists(lines, max_size=25),
    other=st.lists(lines, max_size=8),
    suffixes=st.tuples(st.sampled_from(SUFFIXES), st.sampled_from(SUFFIXES)),
    context=st.integers(2, 24),
    cleaning=st.fixed_dictionaries(
        {
            name: st.booleans()
            for name in ("drop_empty", "drop_duplicates", "drop_validation_overlap")
        }
    ),
    batch=st.integers(1, 9),
    block=st.integers(1, 64),
)
def test_every_token_is_in_a_row_or_is_counted_as_dropped(
    folder: Path,
    stories: list[str],
    other: list[str],
    suffixes: tuple[str, str],
    context: int,
    cleaning: dict[str, bool],
    batch: int,
    block: int,
) -> None:
    parts = {"train": stories + stories[:2], "validation": other + stories[:3]}
    for (name, told), suffix in zip(parts.items(), suffixes, strict=True):
        (folder / f"{name}{suffix}").write_bytes(written(suffix, told))
    data = replace(
        data_of(folder, prepared_dir=str(folder / "prepared"), **cleaning),
        tokenizer=tokenizer_folder().name,
        context_length=context,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "STORIES_PER_BATCH", batch)
        patch.setattr(packing.RowWriter, "TOKENS_PER_BLOCK", block)
        patch.setattr(text_files, "READ_BLOCK_BYTES", block)
        tokens = {
            name: sum(len(TRAINED(story).input_ids) + 1 for story in kept)
            for name, kept in kept_of(parts, cleaning).items()
        }
        if min(tokens.values()) < context:
            with pytest.raises(UserError, match=re.escape(str(folder))):
                prepare(data, VOCABULARY, quiet=True)
            assert not (folder / "prepared").exists(), "nothing is left"
            return
        prepared = prepare(data, VOCABULARY, quiet=True)
    for name, kept in kept_of(parts, cleaning).items():
        counts = prepared.manifest.split(name)
        dropped = counts.dropped_empty + counts.dropped_duplicates + counts.dropped_overlap
        assert counts.stories_read == counts.stories_kept + dropped == len(parts[name])
        assert counts.stories_kept == len(kept)
        assert counts.bytes == sum(len(story.encode()) for story in kept)
        assert counts.tokens_in == counts.tokens_out + counts.tokens_dropped
        assert counts.tokens_out == counts.rows * context
        assert counts.tokens_dropped == len(counts.tail) < context
        rows = getattr(prepared, name)["input_ids"]
        assert [len(row) for row in rows] == [context] * counts.rows
        stream = token_stream(prepared, name).tolist()
        assert stream == [token for row in rows for token in row] + counts.tail
        spelled = TRAINED.backend_tokenizer.decode(stream, skip_special_tokens=False)
        assert spelled == "".join(story + END_OF_TEXT for story in kept)
        assert len(stream) == counts.tokens_in == tokens[name]


def kept_of(parts: dict[str, list[str]], cleaning: dict[str, bool]) -> dict[str, list[str]]:
    """Return the stories that cleaning keeps, by a naive implementation of its settings."""
    kept: dict[str, list[str]] = {}
    for name, stories in parts.items():
        kept[name] = []
        seen: set[str] = set()
        barred = {story.strip() for story in kept["train"]} if name == "validation" else set()
        for story in stories:
            key = story.strip()
            if cleaning["drop_empty"] and not key:
                continue
            if cleaning["drop_validation_overlap"] and key in barred:
                continue
            if cleaning["drop_duplicates"] and key in seen:
                continue
            seen.add(key)
            kept[name].append(story)
    return kept
