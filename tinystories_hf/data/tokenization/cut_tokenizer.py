"""Cut a byte-level BPE to its most common tokens, without losing any text.

The paper kept the 10,000 most common tokens of GPT-Neo's vocabulary and does not say what it did
with the rest. Here the rest is spelt in smaller pieces, down to single bytes, so that there is no
unknown token and decoding is exact.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.config.parsing import local_path
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.core.files import file_sha256
from tinystories_hf.data.tokenization.tokenize import WordTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tinystories_hf.data.tokenization.saved_tokenizer import (
        PreTrainedTokenizerFast as StoryTokenizerFast,
    )

# How the entries are chosen, for the record of a run.
RULE = (
    "all bytes and added tokens, then tokens by their counts, of equal ones the lower id first,"
    " each with the tokens that its merges need"
)
_STORIES_PER_BATCH = 512


@dataclass(frozen=True)
class CutRecord:
    """How a tokenizer was cut: its entries before, and whose counts chose those that are left.

    `counts` names the training stories or a file, whose sha256 follows. `tokens_before` is the
    number of tokens of the training stories with all entries, None if they were not counted.
    """

    entries_before: int
    rule: str
    counts: str
    counts_sha256: str | None = None
    tokens_before: int | None = None


def cut_by_file(
    tokenizer: PreTrainedTokenizerFast, vocab_size: int, data: DataArguments
) -> tuple[StoryTokenizerFast, CutRecord]:
    """Cut a tokenizer by the counts in the file `data.token_counts`.

    Raises:
        UserError: as `read_token_counts` and `cut_tokenizer`.
    """
    path = local_path("token_counts", str(data.token_counts))
    counts = read_token_counts(path, len(tokenizer))
    cut = cut_tokenizer(tokenizer, vocab_size, counts, data.context_length, data.eos_token)
    return cut, CutRecord(len(tokenizer), RULE, path.name, file_sha256(path))


def cut_by_stories(
    tokenizer: PreTrainedTokenizerFast,
    vocab_size: int,
    stories: Iterable[str],
    data: DataArguments,
) -> tuple[StoryTokenizerFast, CutRecord]:
    """Cut a tokenizer by how often its tokens occur in stories.

    Raises:
        UserError: as `cut_tokenizer`.
    """
    end = tokenizer.convert_tokens_to_ids(data.eos_token)
    counts = count_tokens(tokenizer, stories)
    total = int(counts.sum() - counts[end])
    cut = cut_tokenizer(tokenizer, vocab_size, counts.tolist(), data.context_length, data.eos_token)
    return cut, CutRecord(len(tokenizer), RULE, "the training stories", tokens_before=total)


def can_be_cut(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether a tokenizer is a byte-level BPE with an entry for each byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return bool(model["type"] == "BPE" and set(ByteLevel.alphabet()) <= model["vocab"].keys())


def cut_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    vocab_size: int,
    counts: Sequence[int],
    context_length: int,
    eos_token: str,
) -> StoryTokenizerFast:
    """Return the tokenizer with `vocab_size` entries, chosen by `counts` (one per id) and `RULE`.

    An entry whose parts no longer fit is skipped. The entries keep their order and are
    numbered from 0. Text in which no entry that was cut occurs has the same tokens as before.

    Raises:
        UserError: `vocab_size` is too small for the bytes and the added tokens.
    """
    from tokenizers import Tokenizer

    from tinystories_hf.data.tokenization.saved_tokenizer import story_tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    kept = _kept(state, merges, vocab_size, counts)
    number = {entry: new for new, entry in enumerate(sorted(kept, key=kept.__getitem__))}
    model["vocab"] = {entry: number[entry] for entry in number if entry in model["vocab"]}
    model["merges"] = [
        [left, right]
        for left, right in merges
        if left in number and right in number and left + right in number
    ]
    for entry in state["added_tokens"]:
        entry["id"] = number[entry["content"]]
    state["post_processor"] = None  # it may contain ids; a story gets its end token elsewhere
    backend = Tokenizer.from_str(json.dumps(state))
    unknown = tokenizer.unk_token if tokenizer.unk_token in number else None
    return story_tokenizer(backend, eos_token, context_length, unknown)


def _kept(
    state: dict[str, Any], merges: list[tuple[str, str]], vocab_size: int, counts: Sequence[int]
) -> dict[str, int]:
    """Return the entries that are kept, with their old ids."""
    from tokenizers.pre_tokenizers import ByteLevel

    added = {entry["content"]: entry["id"] for entry in state["added_tokens"]}
    ids = {**state["model"]["vocab"], **added}
    kept = {entry: ids[entry] for entry in (*ByteLevel.alphabet(), *added)}
    if vocab_size < len(kept):
        raise UserError(
            f"vocab_size {vocab_size} is too small for the {len(kept)} bytes and special tokens of"
            f" the tokenizer; use at least {len(kept)}"
        )
    parts: dict[str, tuple[str, str]] = {}
    for left, right in merges:
        parts.setdefault(left + right, (left, right))
    common = sorted(ids, key=lambda entry: (-counts[ids[entry]], ids[entry]))
    for entry in common:
        needed = {}
        waiting = [entry]
        while waiting:
            each = waiting.pop()
            if each not in kept and each not in needed:
                needed[each] = ids[each]
                waiting.extend(parts.get(each, ()))
        if len(kept) + len(needed) <= vocab_size:
            kept |= needed
    return kept


def count_tokens(
    tokenizer: PreTrainedTokenizerFast, stories: Iterable[str]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how often each id occurs in stories, (entries,)."""
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    remaining, tokenize = iter(stories), WordTokenizer(tokenizer)
    while batch := list(islice(remaining, _STORIES_PER_BATCH)):
        counts += np.bincount(tokenize(batch), minlength=len(counts))
    return counts


def read_token_counts(path: Path, entries: int) -> list[int]:
    """Return the counts of a CSV file with the columns `id` and `count`; missing ids count 0.

    Raises:
        UserError: the file cannot be read, or is not such a table of a tokenizer of that size.
    """
    counts = [0] * entries
    with reporting_unreadable("token_counts", path):
        lines = path.read_text(encoding="utf-8").splitlines()
    for line, (number, count) in enumerate(_rows(path, lines), start=2):
        if not (number.isdecimal() and count.isdecimal() and int(number) < entries):
            raise UserError(
                f"token_counts: line {line} of {path} is not an id below {entries} and its count;"
                " give the counts of this tokenizer"
            )
        counts[int(number)] = int(count)
    return counts


def _rows(path: Path, lines: list[str]) -> Iterator[tuple[str, str]]:
    table = csv.DictReader(lines)
    if not {"id", "count"} <= set(table.fieldnames or ()):
        raise UserError(f"token_counts: {path} has no columns `id` and `count`")
    for row in table:
        yield row["id"] or "", row["count"] or ""
